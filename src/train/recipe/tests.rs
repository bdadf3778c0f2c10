//! The recipes of the repository open, and slips in them are named.

use super::*;
use crate::dialogue::pieces::Long;

const POST: &str = include_str!("../../../finetune/mixtral-8x7b-v100.toml");
const REHEARSAL: &str = include_str!("../../../finetune/rehearsal-cpu.toml");

fn changed(from: &str, to: &str) -> Result<Recipe> {
    assert!(POST.contains(from), "{from}");
    Recipe::parse(&POST.replacen(from, to, 1), "some.toml")
}

#[test]
fn the_recipe_of_the_post_is_what_firefly_did() {
    let recipe = Recipe::parse(POST, "some.toml").unwrap();
    assert_eq!(recipe.stated_steps(), Some(3000));
    assert_eq!(recipe.dialogues_per_step(), 16);
    assert_eq!((recipe.lora.rank, recipe.lora.alpha, recipe.lora.dropout), (16, 16.0, 0.05));
    assert_eq!(recipe.lora.targets.len(), 8);
    assert_eq!((recipe.format, recipe.max_tokens, recipe.seed), (Format::FireflyMistral, 1024, 42));
    assert_eq!((recipe.quantization, recipe.dtype), (Quantization::Nf4, Dtype::F16));
    let optimizer = &recipe.optimizer;
    assert_eq!((optimizer.learning_rate, optimizer.betas, optimizer.epsilon), (1e-4, [0.9, 0.999], 1e-8));
    assert_eq!((optimizer.weight_decay, optimizer.max_grad_norm), (0.0, Some(0.3)));
    assert_eq!((recipe.schedule.warmup_steps, recipe.router_aux_loss_coef), (600, 0.02));
}

#[test]
fn the_rehearsal_opens() {
    let recipe = Recipe::parse(REHEARSAL, "some.toml").unwrap();
    assert_eq!((recipe.dialogues_per_step(), recipe.max_tokens, recipe.format), (8, 256, Format::ChatTemplate));
}

#[test]
fn slips_are_named_with_what_was_meant() {
    for (from, to, told) in [
        ("max_tokens", "max_token", "did you mean `max_tokens`?"),
        ("rank = 16", "ranks = 16", "did you mean `rank`?"),
        ("\"nf4\"", "\"nf3\"", "did you mean `nf4`?"),
        ("\"firefly-mistral\"", "\"firefly\"", "unknown variant `firefly`"),
        ("\"constant-with-warmup\"", "\"constant\"", "`constant-with-warmup`"),
        ("\"gate\"", "\"gates\"", "unknown target `gates`"),
        ("\"gate\"", "\"w1\"", "names a target twice"),
        ("rank = 16", "rank = 0", "`[lora] rank` is 0"),
        ("rank = 16", "rank = -1", "some.toml, line"),
        ("dropout = 0.05", "dropout = 1.0", "`[lora] dropout` is 1"),
        ("learning_rate = 1e-4", "learning_rate = nan", "`[optimizer] learning_rate` is NaN"),
        ("[0.9, 0.999]", "[0.9, 1.0]", "`[optimizer] betas` is 1"),
        ("steps = 3000", "steps = 3000\nepochs = 1", "`steps` and `epochs` are both given"),
        ("steps = 3000", "", "neither `steps` nor `epochs`"),
        ("steps = 3000", "steps = 99999999999999", "`steps` is 99999999999999"),
        ("seed = 42", "seed = \"x\"", "some.toml, line"),
        ("max_grad_norm = 0.3", "max_grad_norm = 0.0", "`[optimizer] max_grad_norm` is 0"),
    ] {
        let error = format!("{:#}", changed(from, to).unwrap_err());
        assert!(error.contains("some.toml") && error.contains(told), "{to}: {error}");
    }
}

#[test]
fn data_is_a_list_or_a_table() {
    let list = "data = [\"finetune/data/ultrachat-48k.jsonl\"]";
    let with = |data: &str| changed(list, data);
    let paths = |recipe: &Recipe| recipe.data.paths().iter().map(|path| path.display().to_string()).collect::<Vec<_>>();
    let plain = Recipe::parse(POST, "some.toml").unwrap();
    assert_eq!(
        (paths(&plain), plain.data.files[0].weight),
        (vec!["finetune/data/ultrachat-48k.jsonl".to_owned()], 1.0)
    );
    let table = "data.files = [\"a.jsonl\", { path = \"b.parquet\", weight = 0.25 }]\ndata.long = \"split\"\n";
    let recipe = with(&format!("{table}data.limits = {{ duplicates = 0.02, language = \"eng\" }}")).unwrap();
    assert_eq!(paths(&recipe), ["a.jsonl", "b.parquet"]);
    assert_eq!((recipe.data.files[1].weight, recipe.data.long), (0.25, Long::Split));
    let limits = &recipe.data.limits;
    assert_eq!((limits.duplicates, limits.malformed, limits.language.unwrap().code()), (0.02, 0.0, "eng"));
    assert_eq!(recipe.digest(), with(table).unwrap().digest(), "limits do not change what is learnt");
    assert_ne!(recipe.digest(), with(&table.replace("0.25", "0.5")).unwrap().digest());
    for (data, told) in [
        ("data = []", "`data` lists no file"),
        ("data = 7", "a list of files, or a table with `files`"),
        ("data = [7]", "a path, or a table with `path` and `weight`"),
        ("data = { file = [] }", "did you mean `files`?"),
        ("data = { files = [{ path = \"a\", weigh = 2 }] }", "did you mean `weight`?"),
        ("data = { files = [{ path = \"a\", weight = 0 }] }", "the weight of a is 0"),
        ("data = { files = [{ path = \"a\", weight = -1 }] }", "the weight of a is -1"),
        ("data = { files = [\"a\"], long = \"splits\" }", "did you mean `split`?"),
        ("data = { files = [\"a\"], limits = { duplicate = 0 } }", "did you mean `duplicates`?"),
        ("data = { files = [\"a\"], limits = { duplicates = 5 } }", "`[data.limits] duplicates` is 5, outside 0 to 1"),
        ("data = { files = [\"a\"], limits = { language = \"english\" } }", "unknown language `english`"),
    ] {
        let error = format!("{:#}", with(data).unwrap_err());
        assert!(error.contains(told) && error.contains("some.toml"), "{data}: {error}");
    }
}

#[test]
fn held_out_dialogues_are_a_count_or_a_fraction() {
    let with = |held_out: &str| Recipe::parse(&format!("{POST}\n[held_out]\ndialogues = {held_out}\n"), "some.toml");
    assert_eq!(with("12").unwrap().held_out.unwrap().count(100), 12);
    assert_eq!(with("0.05").unwrap().held_out.unwrap().count(100), 5);
    assert_eq!(with("0.001").unwrap().held_out.unwrap().count(100), 1);
    for wrong in ["0", "1.5", "-1", "\"x\""] {
        assert!(with(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn epochs_are_whole_steps_over_the_dialogues() {
    let recipe = changed("steps = 3000", "epochs = 2").unwrap();
    assert_eq!((recipe.steps(100), recipe.steps(3), recipe.stated_steps()), (12, 2, None));
    assert_eq!(changed("steps = 3000", "steps = 7").unwrap().steps(100), 7);
}

#[test]
fn the_digest_is_that_of_what_decides_the_numbers() {
    let digest = |recipe: Result<Recipe>| recipe.unwrap().digest();
    let post = digest(Recipe::parse(POST, "some.toml"));
    assert_eq!(post, digest(changed("checkpoint_every = 100", "checkpoint_every = 5")));
    assert_eq!(post, digest(Recipe::parse(&format!("# a word\n{POST}"), "other.toml")));
    assert_ne!(post, digest(changed("seed = 42", "seed = 43")));
    assert_ne!(post, digest(changed("warmup_steps = 600", "warmup_steps = 100")));
}
