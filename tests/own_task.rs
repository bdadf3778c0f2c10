//! A user's own task, without touching Rust: the examples of tasks/README.md, from files to scores.

use fireval::chat::ChatTemplate;
use fireval::protocol::Protocol;
use fireval::request::{Request, Response};
use fireval::task::{DataSource, Document, Task};

const HEAD: &str = "name = \"own\"\nversion = 1\nmetric = \"acc\"\n";

struct Own {
    folder: tempfile::TempDir,
    task: Task,
}

/// A task file with its data: `rows` are the evaluated split, `train` the pool.
fn own(shots: usize, prompt: &str, rows: &str, train: &str) -> Own {
    own_with(HEAD, shots, prompt, rows, train)
}

fn own_with(head: &str, shots: usize, prompt: &str, rows: &str, train: &str) -> Own {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("own");
    std::fs::create_dir(&place).unwrap();
    std::fs::write(place.join("test.jsonl"), rows).unwrap();
    std::fs::write(place.join("train.jsonl"), train).unwrap();
    let data = "[data]\nfolder = \"own\"\nevaluation = \"test\"\nshots_file = \"train\"\n";
    let file = folder.path().join("own.toml");
    std::fs::write(&file, format!("{head}shots = {shots}\n{data}\n[prompt]\n{prompt}")).unwrap();
    let task = Task::load(file.to_str().unwrap(), None).unwrap();
    Own { folder, task }
}

impl Own {
    fn documents(&self) -> Vec<Document> {
        self.asked(Protocol::LmEvalLatest, None).unwrap()
    }

    fn asked(&self, protocol: Protocol, chat: Option<&ChatTemplate>) -> anyhow::Result<Vec<Document>> {
        self.task.documents(protocol, &DataSource::Folder(self.folder.path().to_path_buf()), None, chat)
    }
}

fn sum(sum: f64) -> Response {
    Response::LogLikelihood { sum, tokens: vec![1], is_greedy: false }
}

#[test]
fn multiple_choice() {
    let prompt = "shape = \"multiple-choice\"\ntext = \"Question: {question}\\nAnswer:\"\nchoices_field = \"options\"\n\
                  gold = { index = \"answer\" }\n";
    let own = own(
        1,
        prompt,
        "{\"question\": \"Capital of France?\", \"options\": [\"Rome\", \"Paris, of course\"], \"answer\": 1}\n",
        "{\"question\": \"Capital of Italy?\", \"options\": [\"Rome\", \"Paris\"], \"answer\": \"0\"}\n",
    );
    let documents = own.documents();
    let context = "Question: Capital of Italy?\nAnswer: Rome\n\nQuestion: Capital of France?\nAnswer:";
    let request =
        |continuation: &str| Request::LogLikelihood { context: context.into(), continuation: continuation.to_owned() };
    assert_eq!(documents[0].requests, [request(" Rome"), request(" Paris, of course")]);
    let score = own.task.score(Protocol::LmEvalLatest, &documents[0], &[sum(-4.0), sum(-5.0)]).unwrap();
    assert_eq!((score.metrics["acc"], score.metrics["acc_norm"]), (0.0, 1.0));
    let estimates = own.task.estimates(Protocol::LmEvalLatest, &[score]).unwrap();
    assert_eq!((estimates["acc_norm"].value, estimates["acc_norm"].n), (1.0, 1));
}

#[test]
fn partial_context() {
    let prompt = "shape = \"partial-context\"\nsentence = \"sentence\"\noptions = [\"option1\", \"option2\"]\n\
                  gold = { number = \"answer\" }\n";
    let row = "{\"sentence\": \"Ann thanked Bob as _ had helped. \", \"option1\": \"Ann\", \"option2\": \"Bob\", \
               \"answer\": \"2\"}\n";
    let own = own(0, prompt, row, "");
    let documents = own.documents();
    let request =
        |context: &str| Request::LogLikelihood { context: context.into(), continuation: " had helped.".to_owned() };
    assert_eq!(documents[0].requests, [request("Ann thanked Bob as Ann"), request("Ann thanked Bob as Bob")]);
    let score = own.task.score(Protocol::LmEvalLatest, &documents[0], &[sum(-4.0), sum(-3.0)]).unwrap();
    assert_eq!(score.metrics["acc"], 1.0);
}

#[test]
fn generation() {
    let prompt = "shape = \"generation\"\ntext = \"Question: {question}\\nAnswer:\"\ntarget = \"{answer}\"\n\
                  max_tokens = 64\nstop = [\"\\n\"]\n\
                  filters = [{ name = \"number\", regex = '(-?[0-9]+)', take = \"last\" }]\n";
    let row = "{\"question\": \"2 + 3?\", \"answer\": 5}\n";
    let head = format!("{HEAD}metric_latest = \"exact_match,number\"\n");
    let own = own_with(&head, 0, prompt, row, "");
    let documents = own.documents();
    assert!(matches!(&documents[0].requests[0], Request::Generate { stop, max_tokens: 64, .. } if stop == &["\n"]));
    let score = |text: &str, protocol| {
        let response = Response::Generate { text: text.to_owned(), tokens: Vec::new() };
        own.task.score(protocol, &documents[0], &[response]).unwrap()
    };
    assert_eq!(score(" 2 + 3 is 5", Protocol::LmEvalLatest).metrics["exact_match,number"], 1.0);
    assert_eq!(score(" none", Protocol::LeaderboardV1).metrics["acc"], 0.0);
    assert_eq!(score("x", Protocol::LmEvalLatest).output.as_deref(), Some("x"));
}

const CHOICE: &str = "shape = \"multiple-choice\"\ntext = \"{q}\"\nchoices_field = \"c\"\ngold = { index = \"a\" }\n";

/// A document of [`CHOICE`].
fn choice(question: &str) -> String {
    format!("{{\"q\": \"{question}\", \"c\": [\"x\", \"y\"], \"a\": 0}}\n")
}

#[test]
fn a_metric_that_nothing_scores_is_named_before_anything_is_asked() {
    let refused = |head: &str, protocol| {
        let own = own_with(&HEAD.replace("metric = \"acc\"\n", head), 0, CHOICE, &choice("why?"), "");
        own.asked(protocol, None).err().map(|error| format!("{error:#}")).unwrap_or_default()
    };
    let misspelt = refused("metric = \"acc_nrom\"\n", Protocol::LeaderboardV1);
    assert!(misspelt.contains("no metric `acc_nrom` under leaderboard-v1 (known: acc, acc_norm)"), "{misspelt}");
    let latest = "metric = \"acc\"\nmetric_latest = \"mc2\"\n";
    assert_eq!(refused(latest, Protocol::LeaderboardV1), "");
    assert!(refused(latest, Protocol::LmEvalLatestOpenllm).contains("no metric `mc2`"));
    let grouped = "metric = \"acc\"\nmetric_latest = \"acc,both\"\nsubtask = \"q\"\n";
    let grouped = format!("{grouped}groups = [{{ name = \"both\", subtasks = [\"why?\"] }}]\n");
    assert_eq!(refused(&grouped, Protocol::LmEvalLatest), "");
}

#[test]
fn a_template_that_refuses_a_system_message_is_asked_without_one() {
    let refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}";
    let template = format!("{refusing}{{% for m in messages %}}[{{{{ m.role }}}}] {{{{ m.content }}}}{{% endfor %}}");
    let template = ChatTemplate::new(&template, None, None).unwrap();
    let head = format!("{HEAD}description = \"Answer.\"\n");
    let own = own_with(&head, 0, CHOICE, &choice("why?"), "");
    let documents = own.asked(Protocol::LmEvalLatest, Some(&template)).unwrap();
    let Request::LogLikelihood { context, .. } = &documents[0].requests[0] else { panic!("a choice") };
    assert_eq!(&**context, "[user] why?");
    let never = ChatTemplate::new("{{ raise_exception('not at all') }}", None, None).unwrap();
    let error = format!("{:#}", own.asked(Protocol::LmEvalLatest, Some(&never)).unwrap_err());
    assert!(error.contains("test.jsonl, line 1") && error.contains("not at all"), "{error}");
}

#[test]
fn a_context_of_white_space_is_named_where_nothing_stands_before_it() {
    let own = own(0, CHOICE, &[choice("why?"), choice(" ")].concat(), "");
    let error = format!("{:#}", own.asked(Protocol::LeaderboardV1, None).unwrap_err());
    assert!(error.starts_with("task own: ") && error.contains("line 2: the context is white space alone"), "{error}");
    assert_eq!(own.documents().len(), 2, "a tokenizer may put its BOS there");
}

#[test]
fn a_wrong_file_is_named_with_what_is_wrong_in_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("own.toml");
    let error = |text: String| {
        std::fs::write(&file, text).unwrap();
        format!("{:#}", Task::load(file.to_str().unwrap(), None).unwrap_err())
    };
    let data = "[data]\nfolder = \"own\"\nevaluation = \"test\"\n";
    let prompt = "[prompt]\nshape = \"multiple-choice\"\ntext = \"{q}\"\nchoices_field = \"c\"\n";
    let whole = |head: &str, gold: &str| format!("{head}{data}{prompt}gold = {gold}\n");
    let index = "{ index = \"a\" }";
    let misspelt = error(whole(&format!("{HEAD}num_shots = 5\n"), index));
    assert!(misspelt.contains("own.toml, line 4") && misspelt.contains("did you mean `shots`?"), "{misspelt}");
    assert!(error(whole(&format!("{HEAD}shots = 5\n"), index)).contains("shots_file"));
    assert!(error(whole(&format!("{HEAD}shots = 0\n"), "{ index = \"a\", number = \"b\" }")).contains("`gold`"));
    assert!(error(whole(&format!("{HEAD}shots = 0\n"), index).replace("{q}", "{q|loud}")).contains("loud"));
    let open = error(whole(&format!("{HEAD}shots = 0\n"), index).replace("{q}", "Q: {q"));
    assert!(open.contains("own.toml") && open.contains("`text`: `{q` in \"Q: {q\" is not closed"), "{open}");
    assert!(error(whole(&format!("{HEAD}shots = 0\n"), index).replace("multiple-choice", "choice")).contains("choice"));
    assert!(error("name = ".to_owned()).contains("line 1"));
}
