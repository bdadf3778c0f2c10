//! The house's floors: a file imports only from lower floors and from inside its own folder, heavy packages stay behind
//! their doors, and files stay readable in length. Read from the source text, so nothing has to be built for it.

use std::path::{Path, PathBuf};

/// Rooms from the ground up; what stands beside each other on a floor does not import each other.
const FLOORS: &[(&str, &[&str])] = &[
    ("values", &["digest", "memory", "progress", "protocol", "python", "random", "request", "settings"]),
    ("records", &["disk", "score", "spill", "stats"]),
    ("kernels", &["kernel"]),
    ("weights", &["weights"]),
    ("doors", &["chart", "chat", "hub", "language", "rows", "tokenizer"]),
    ("meanings", &["dialogue", "model", "model_id", "published", "task"]),
    ("workers", &["claim", "engine", "store", "train", "transform"]),
    ("together", &["project"]),
    ("evaluation", &["eval", "samples"]),
    ("comparison", &["compare"]),
    ("judging", &["gate"]),
    ("showing", &["report"]),
    ("exchange", &["exchange"]),
    ("commands", &["cmd"]),
];

/// Heavy packages and the only places that may name them.
const DOORS: &[(&str, &[&str])] = &[
    ("candle_core", &["weights", "model", "train", "engine", "cmd"]),
    ("candle_nn", &["model"]),
    ("tokenizers", &["tokenizer"]),
    ("hf_hub", &["hub"]),
    ("polars", &["rows"]),
    ("whatlang", &["language"]),
    ("minijinja", &["chat", "report"]),
    ("plotters", &["chart"]),
    ("comfy_table", &["report"]),
    ("indicatif", &["progress"]),
    ("memmap2", &["weights"]),
    ("pulldown_cmark", &["claim"]),
    ("safetensors", &["weights", "model", "train"]),
];

const LONGEST_FILE: usize = 500;

struct Source {
    path: PathBuf,
    /// The top-level module the file belongs to.
    room: String,
    text: String,
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut pending = vec![root.clone()];
    let mut sources = Vec::new();
    while let Some(folder) = pending.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                pending.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let inside = path.strip_prefix(&root).unwrap().to_path_buf();
                let first = inside.components().next().unwrap().as_os_str().to_string_lossy().into_owned();
                let room = first.trim_end_matches(".rs").to_owned();
                sources.push(Source { text: std::fs::read_to_string(&path).unwrap(), path: inside, room });
            }
        }
    }
    sources.retain(|source| source.room != "lib" && source.room != "main");
    assert!(sources.len() > 20, "the sources were found");
    sources
}

fn floor(room: &str) -> usize {
    let found = FLOORS.iter().position(|(_, rooms)| rooms.contains(&room));
    found.unwrap_or_else(|| panic!("src/{room} stands on no floor: add it to tests/floors.rs and ARCHITECTURE.md"))
}

/// The rooms that a line of `source` names as `crate::room`.
fn imports(text: &str) -> Vec<String> {
    let word = |rest: &str| rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    code.flat_map(|line| line.split("crate::").skip(1).map(word).collect::<Vec<_>>())
        .filter(|w| !w.is_empty())
        .collect()
}

#[test]
fn imports_only_go_down() {
    let mut wrong = Vec::new();
    for source in sources() {
        for import in imports(&source.text) {
            if import != source.room && floor(&import) >= floor(&source.room) {
                wrong.push(format!("src/{} imports crate::{import}", source.path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "imports that do not go down:\n{}", wrong.join("\n"));
}

#[test]
fn heavy_packages_stay_behind_their_doors() {
    let mut wrong = Vec::new();
    for source in sources() {
        for (package, rooms) in DOORS {
            let named = source
                .text
                .lines()
                .any(|line| !line.trim_start().starts_with("//") && line.contains(&format!("{package}::")));
            if named && !rooms.contains(&source.room.as_str()) {
                wrong.push(format!("src/{} uses {package}", source.path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "packages outside their door:\n{}", wrong.join("\n"));
}

#[test]
fn files_stay_short_and_say_what_they_are() {
    for source in sources() {
        let lines = source.text.lines().count();
        assert!(lines <= LONGEST_FILE, "src/{} has {lines} lines: a noun is missing", source.path.display());
        assert!(source.text.starts_with("//!"), "src/{} has no header", source.path.display());
    }
}

#[test]
fn imports_are_found_in_text() {
    let text = "use crate::model::x;\n// crate::cmd\nlet y = crate::python::strip(crate::rows::z);";
    assert_eq!(imports(text), ["model", "python", "rows"]);
}
