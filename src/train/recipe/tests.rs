//! The recipes of the repository open, and slips in them are named.

use super::*;
use crate::dialogue::pieces::Long;
use crate::model::adapter::target::Target;
use crate::model::config::ModelConfig;
use crate::model::names::Linear;
use crate::train::initial;

const POST: &str = include_str!("../../../finetune/mixtral-8x7b-v100.toml");
const REHEARSAL: &str = include_str!("../../../finetune/rehearsal-cpu.toml");

/// Name, text, and the parameters that the pairs have.
const OTHERS: [(&str, &str, usize); 4] = [
    // 32 layers of q (4096 to 4096) and v (4096 to 1024), rank 8.
    ("qv-rank8", include_str!("../../../finetune/mixtral-8x7b-qv-rank8.toml"), 32 * 8 * (8192 + 5120)),
    ("upper-layers", include_str!("../../../finetune/mixtral-8x7b-upper-layers.toml"), POST_PARAMETERS / 2),
    ("rank32", include_str!("../../../finetune/mixtral-8x7b-rank32.toml"), POST_PARAMETERS * 2),
    ("rank64", include_str!("../../../finetune/mixtral-8x7b-rank64.toml"), POST_PARAMETERS * 4),
];
/// Of the post's own recipe (the plan's test counts it, too).
const POST_PARAMETERS: usize = 242_225_152;

fn changed(from: &str, to: &str) -> Result<Recipe> {
    assert!(POST.contains(from), "{from}");
    Recipe::parse(&POST.replacen(from, to, 1), "some.toml")
}

fn lora(recipe: &Recipe) -> &Lora {
    recipe.lora.as_ref().unwrap()
}

#[test]
fn the_recipe_of_the_post_is_what_firefly_did() {
    let recipe = Recipe::parse(POST, "some.toml").unwrap();
    assert_eq!(recipe.stated_steps(), Some(3000));
    assert_eq!(recipe.dialogues_per_step(), 16);
    let lora = lora(&recipe);
    assert_eq!((lora.rank, lora.alpha, lora.dropout), (16, 16.0, 0.05));
    assert_eq!(lora.targets.len(), 8);
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

/// Each is the post's but for what its name says.
#[test]
fn the_posts_other_cases_open() {
    let json = include_str!("../../../finetune/configs/mixtral-8x7b-v0.1.json");
    let config = ModelConfig::from_json(&serde_json::from_str(json).unwrap(), "config.json").unwrap();
    let post = Recipe::parse(POST, "some.toml").unwrap();
    for (name, text, parameters) in OTHERS {
        let recipe = Recipe::parse(text, name).unwrap();
        let lora = lora(&recipe);
        let linears = initial::linears(&config, lora).unwrap();
        let count = |(target, linear): &(Target, Linear)| lora.rank(*target) * (linear.inputs + linear.outputs);
        assert_eq!(linears.iter().map(count).sum::<usize>(), parameters, "{name}");
        assert_eq!(recipe.output, Path::new("finetune/adapters").join(format!("mixtral-8x7b-{name}")));
        assert!(lora.targets.iter().all(|&target| lora.scale(target) == 1.0), "{name}");
        assert_eq!(Recipe { lora: post.lora.clone(), output: post.output.clone(), ..recipe }, post, "{name}");
    }
}

#[test]
fn choices_of_lora_are_read_and_checked() {
    let more =
        "dropout = 0.05\nranks = { q_proj = 8, w1 = 4, w3 = 4 }\nalphas = { w1 = 2, w3 = 2 }\nlayers = \"0-3, 8\"";
    let lora = changed("dropout = 0.05", more).unwrap().lora.unwrap();
    assert_eq!((lora.rank(Target::Query), lora.rank(Target::Key), lora.rank(Target::W1)), (8, 16, 4));
    assert_eq!((lora.scale(Target::Query), lora.scale(Target::W3)), (2.0, 0.5));
    assert!(lora.has_layer(8) && !lora.has_layer(4));
    lora.check_layers(9).unwrap();
    lora.check_joined().unwrap();
    let error = lora.check_layers(8).unwrap_err().to_string();
    assert!(error.contains("names layer 8"), "{error}");
    let uneven = changed("dropout = 0.05", "dropout = 0.05\nranks = { w1 = 4 }").unwrap().lora.unwrap();
    let error = uneven.check_joined().unwrap_err().to_string();
    assert!(error.contains("w1 and w3 are one tensor"), "{error}");
    let alone = changed(", \"w3\"", "").unwrap().lora.unwrap();
    assert!(alone.check_joined().is_err());
}

#[test]
fn a_run_stops_when_it_has_not_got_better_for_a_while() {
    let settings = HeldOut { dialogues: 8.0, every: Some(1), patience: Some(2), least_gain: 0.1, keep_best: false };
    let losses = [(0, Some(3.0)), (1, Some(2.5)), (2, Some(2.45)), (3, None)];
    let best: Vec<Option<usize>> = (0..=4).map(|count| settings.best(&losses[..count])).collect();
    assert_eq!(best, [None, Some(0), Some(1), Some(1), Some(1)]);
    let stops: Vec<bool> = (1..=4).map(|count| settings.stops(&losses[..count])).collect();
    assert_eq!(stops, [false, false, false, true]);
    assert!(!HeldOut { patience: None, ..settings }.stops(&losses));
    assert_eq!(HeldOut { least_gain: 0.0, ..settings }.best(&losses), Some(2));
    assert!(settings.stops(&[(0, None), (1, None)]), "nothing finite is nothing better");
}

#[test]
fn slips_are_named_with_what_was_meant() {
    for (from, to, told) in [
        ("max_tokens", "max_token", "did you mean `max_tokens`?"),
        ("rank = 16", "rnk = 16", "did you mean `rank`?"),
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
        ("seed = 42", "seed = 42\nneftune_alpha = 0.0", "`neftune_alpha` is 0"),
        ("rank = 16", "rank = 16\nlayers = \"3-1\"", "neither a layer's number nor a range"),
        ("rank = 16", "rank = 16\nranks = { up_proj = 8 }", "gives `up_proj` a rank"),
        ("rank = 16", "rank = 16\nranks = { w1 = 0 }", "`[lora] rank` is 0"),
        ("rank = 16", "rank = 16\nalphas = { w1 = -1.0 }", "`[lora] alpha` is -1"),
        ("epsilon = 1e-8", "epsilon = 1e-8\nlora_plus_ratio = 0.0", "`[optimizer] lora_plus_ratio` is 0"),
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
    for wrong in ["0", "1.5", "-1", "\"x\"", "8\npatience = 1", "8\nkeep_best = true", "8\nevery = 1\npatience = 0"] {
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

#[test]
fn a_recipe_trains_pairs_or_the_weights_themselves() {
    let pairs = &POST[POST.find("[lora]").unwrap()..POST.find("[optimizer]").unwrap()];
    let with = |method: &str, quantization: &str| {
        let text = POST.replacen(pairs, method, 1);
        Recipe::parse(&text.replacen("quantization = \"nf4\"", quantization, 1), "some.toml")
    };
    let error = |method: &str| format!("{:#}", with(method, "quantization = \"none\"").unwrap_err());
    let recipe = with("[full]\n", "quantization = \"none\"").unwrap();
    assert_eq!((recipe.method(), recipe.dropout()), (Method::Full(&Full { tensors: None }), 0.0));
    assert_ne!(recipe.digest(), Recipe::parse(POST, "some.toml").unwrap().digest());
    let four_bits = format!("{:#}", with("[full]\n", "quantization = \"nf4\"").unwrap_err());
    assert!(four_bits.contains("`quantization = \"none\"`"), "{four_bits}");
    assert!(error("").contains("neither `[lora]` nor `[full]`"));
    assert!(error(&format!("{pairs}\n[full]\n")).contains("both given"));
    assert!(error("[full]\ntensors = []\n").contains("`[full] tensors` is empty"));
    assert!(error("[full]\ntensor = []\n").contains("did you mean `tensors`?"));
}

#[test]
fn tensors_are_chosen_by_name() {
    let json = include_str!("../../../finetune/configs/mixtral-8x7b-v0.1.json");
    let config = ModelConfig::from_json(&serde_json::from_str(json).unwrap(), "config.json").unwrap();
    let chosen = |tensors: &[&str]| {
        let tensors = Some(tensors.iter().map(|&name| name.to_owned()).collect());
        Full { tensors }.tensors(&config)
    };
    assert_eq!(Full::default().tensors(&config).unwrap(), crate::model::names::tensors(&config));
    let found = chosen(&["model.layers.31.*_proj.weight", "lm_head.weight"]).unwrap();
    let names: Vec<&str> = found.iter().map(|(name, _)| name.rsplit('.').nth(1).unwrap()).collect();
    assert_eq!(names, ["q_proj", "k_proj", "v_proj", "o_proj", "lm_head"]);
    assert_eq!(found[1].1, [1024, 4096]);
    let error = chosen(&["model.layers.32.*"]).unwrap_err().to_string();
    assert!(error.contains("`model.layers.32.*`") && error.contains("model.embed_tokens.weight"), "{error}");
}
