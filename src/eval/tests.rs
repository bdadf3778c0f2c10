//! A log that is cut at any byte, as a crash may leave it.

use super::*;
use crate::engine::scripted::ScriptedEngine;

const DOCUMENTS: usize = 3;

fn conditions() -> Conditions {
    Conditions {
        protocol: Protocol::LeaderboardV1,
        data: DataSource::Bundled,
        limit: Some(DOCUMENTS),
        chat_template: false,
    }
}

/// The scripted model's runs, and how many documents the engine was asked.
fn scripted(store: &Store, questions: &[TaskDocuments]) -> (Vec<Run>, usize) {
    let engine = ScriptedEngine::new("a").unwrap();
    let model = NamedModel { name: "scripted:a".to_owned(), id: engine.id().clone() };
    let missing = Evaluation::new(&model, questions, &conditions(), store).unwrap().missing().len();
    let mut open = || Ok(Box::new(ScriptedEngine::new("a")?) as Box<dyn Engine>);
    let progress = Progress::hidden();
    (evaluate(&model, &mut open, questions, &conditions(), store, &progress).unwrap(), missing)
}

#[test]
fn a_log_cut_at_any_byte_costs_the_cut_document_and_changes_no_summary() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new(folder.path());
    for task in ["winogrande", "gsm8k"] {
        let questions = questions(&[Task::load(task, None).unwrap()], &conditions(), None).unwrap();
        let (whole, asked) = scripted(&store, &questions);
        assert_eq!(asked, DOCUMENTS);
        let id = &whole[0].manifest.id;
        let log = store.shelf("scripted:a", id, Protocol::LeaderboardV1, task).unwrap().log_path();
        let bytes = std::fs::read(&log).unwrap();
        for cut in 0..=bytes.len() {
            std::fs::write(&log, &bytes[..cut]).unwrap();
            let left = bytes[..cut].iter().filter(|&&byte| byte == b'\n').count();
            let (again, asked) = scripted(&store, &questions);
            assert_eq!(asked, DOCUMENTS - left, "{} cut at {cut}", log.display());
            assert!(whole[0].manifest.same_outcome(&again[0].manifest), "cut at {cut}");
            assert_eq!(whole[0].scores, again[0].scores, "cut at {cut}");
            assert_eq!(std::fs::read(&log).unwrap().len(), bytes.len(), "cut at {cut}");
        }
    }
}
