//! A card tells its facts, and its drawing is whole.

use std::path::PathBuf;

use super::*;
use crate::chart::tests::is_well_formed;
use crate::train::log::HeldOut;
use crate::train::log::tests::step;

fn held_out(step: usize, held_out_loss: f64) -> Entry {
    Entry::HeldOut(HeldOut { step, held_out_loss: Some(held_out_loss) })
}

fn log() -> Vec<Entry> {
    let mut log = vec![held_out(0, 2.5)];
    log.extend((1..=24).map(|number| step(number, Some(2.4 - 0.02 * number as f64))));
    log.extend([step(25, None), held_out(12, 2.0625), held_out(25, 2.125)]);
    log
}

fn post() -> Recipe {
    Recipe::parse(include_str!("../../../finetune/mixtral-8x7b-v100.toml"), "some.toml").unwrap()
}

fn summary() -> TrainSummary {
    TrainSummary {
        is_whole: false,
        adapter: PathBuf::from("finetune/adapters/some"),
        trained_parameters: 242_225_152,
        steps: 25,
        tokens: 2500,
        seconds: 50.0,
        last_loss: Some(1.92),
        held_out: vec![(0, Some(2.5)), (12, Some(2.0625)), (25, Some(2.125))],
        best: Some((12, 2.0625)),
    }
}

fn card(recipe: &Recipe, log: &[Entry], scores: Option<&str>) -> String {
    let counts = Counts {
        rows: 120,
        dialogues: 110,
        without_answer: 2,
        cut_at_limit: 5,
        nothing_learnt: 8,
        tokens: 4000,
        learnt: 2470,
        ..Counts::default()
    };
    let repository = repository(&recipe.model);
    readme(&Facts {
        recipe,
        repository,
        summary: &summary(),
        counts,
        examples: [100, 10],
        data_digest: "abc",
        log,
        scores,
    })
}

#[test]
fn a_card_tells_recipe_data_losses_and_scores() {
    let text = card(&post(), &log(), Some("| task | base | some |"));
    for told in [
        "---\nbase_model: mistralai/Mixtral-8x7B-v0.1\nlibrary_name: peft\n",
        "\n# some\n",
        "242225152 parameters, trained in 25 steps on 2500 tokens (50 s, 50 tokens a second)",
        "| files | finetune/data/ultrachat-48k.jsonl |",
        "| dialogues | 110 |",
        "| examples learnt from in an epoch | 100 |",
        "| examples held out | 10 |",
        "| of them learnt | 2470 (61.8 %): the answers and the token that ends each |",
        "| of the rows | 2 without an answer; 8 with nothing to learn within the token limit; 5 cut at the token limit |",
        "![cross-entropy by step](loss.svg)",
        "| first step | 1 | 2.3800 |",
        "| last step | 24 | 1.9200 |",
        "| held out, best | 12 | 2.0625 |",
        "| held out, last | 25 | 2.1250 |",
        "is the best by the held-out loss, of step 12.",
        "was not finite: 1.",
        "| task | base | some |",
        "| `lora.rank` | 16 |",
        "| `lora.targets` | q_proj, k_proj, v_proj, o_proj, gate, w1, w2, w3 |",
        "| `schedule.kind` | constant-with-warmup |",
        "| `optimizer.betas` | 0.9, 0.999 |",
    ] {
        assert!(text.contains(told), "{told} is not in\n{text}");
    }
    assert!(text.contains(&post().digest()));
    let lines: Vec<&str> = text.lines().filter(|line| line.starts_with('|')).collect();
    assert!(lines.len() > 40 && lines.iter().all(|line| line.ends_with('|')));
}

#[test]
fn scores_are_put_in_later_and_replaced() {
    let bare = card(&post(), &log(), None);
    assert!(bare.contains(NO_SCORES));
    let first = with_scores(&bare, "| a |\n").unwrap();
    assert_eq!(first, card(&post(), &log(), Some("| a |")));
    assert!(!first.contains(NO_SCORES) && scores_of(&first) == Some("| a |"));
    assert_eq!(with_scores(&first, "| b |").unwrap(), card(&post(), &log(), Some("| b |")));
    assert!(with_scores("# mine\n", "| a |").unwrap_err().to_string().contains("no card"));
    assert!(with_scores(&bare, SCORES[1]).is_err());
}

#[test]
fn a_base_on_this_disk_is_not_said_to_be_on_the_hub() {
    assert_eq!(repository("mistralai/Mixtral-8x7B-v0.1"), Some("mistralai/Mixtral-8x7B-v0.1"));
    for local in ["src/train", "base", "/a/b", "a/b/c", "a b/c", "models/x.gguf/"] {
        assert_eq!(repository(local), None, "{local}");
    }
    let mut recipe = post();
    recipe.model = "a|b".to_owned();
    let text = card(&recipe, &log(), None);
    assert!(text.starts_with("---\nlibrary_name: peft\n") && text.contains("`a\\|b`"), "{text}");
}

#[test]
fn the_drawing_is_well_formed_and_inside_its_frame() {
    let svg = curve(&log(), CURVE_WIDTH).unwrap().unwrap();
    assert!(is_well_formed(&svg), "{svg}");
    assert!(!is_well_formed(&svg.replace("</svg>", "")) && !is_well_formed(&svg.replace("</title>", "</text>")));
    assert!(svg.starts_with("<svg width=\"640\"") && svg.contains("xmlns=\"http://www.w3.org/2000/svg\""));
    // The axes are polylines too: of three colours the lines have two.
    let lines: Vec<&str> = svg.split("<polyline").skip(1).filter(|rest| rest.contains("stroke-width=\"2\"")).collect();
    assert_eq!((lines.len(), svg.matches("<circle").count()), (2, 3));
    let points =
        lines.iter().flat_map(|rest| rest.split("points=\"").nth(1).unwrap().split('"').next().unwrap().split(' '));
    let places: Vec<(f64, f64)> = points
        .filter_map(|point| point.split_once(','))
        .map(|(x, y)| (x.parse().unwrap(), y.parse().unwrap()))
        .collect();
    assert_eq!(places.len(), 24 + 3);
    assert!(places.iter().all(|&(x, y)| (40.0..=640.0).contains(&x) && (0.0..=260.0).contains(&y)));
    // Losses that fall go down the page.
    assert!(places[..24].windows(2).all(|pair| pair[0].1 < pair[1].1));
}

#[test]
fn a_run_without_two_steps_has_no_drawing() {
    assert_eq!(curve(&[held_out(0, 2.0), step(1, Some(2.0))], CURVE_WIDTH).unwrap(), None);
    assert!(!card(&post(), &[step(1, Some(2.0))], None).contains(CURVE_FILE));
    let level = curve(&[step(1, Some(2.0)), step(2, Some(2.0))], CURVE_WIDTH).unwrap().unwrap();
    assert!(is_well_formed(&level) && !level.contains("NaN"), "{level}");
}
