//! The store under damage: killed at any moment, on a full disk and in folders that can't be
//! written; and what is cached is found by nobody else. (Cut at any byte: `src/eval/tests.rs`, since a test that starts processes lends
//! them its locks for a moment.)

mod binary;

use std::collections::BTreeSet;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use binary::Workplace;
use fireval::random::Random;

const KILLS: usize = 200;
const FLAGS: [&str; 6] = ["--data", "bundled", "--tasks", "arc_challenge,mmlu/astronomy,gsm8k", "--limit", "7"];

/// Everything that `folder` holds, by path.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

fn logs(place: &Workplace) -> Vec<PathBuf> {
    files(&place.path("results")).into_iter().filter(|path| path.extension().is_some_and(|e| e == "jsonl")).collect()
}

/// Whole lines of all logs.
fn lines(place: &Workplace) -> usize {
    let count = |path: &PathBuf| std::fs::read(path).unwrap().iter().filter(|&&byte| byte == b'\n').count();
    logs(place).iter().map(count).sum()
}

fn export(place: &Workplace, model: &str) -> String {
    place.run(&[&["export", model, "--format", "csv"], &FLAGS[..]].concat()).done()
}

#[test]
fn a_run_killed_two_hundred_times_has_the_same_summary_and_lost_nothing_that_was_written() {
    let whole = Workplace::new();
    let eval = |model: &'static str| [&["eval", model], &FLAGS[..]].concat();
    let begun = Instant::now();
    whole.run(&eval("scripted:a+slow")).done();
    let seconds = begun.elapsed().as_secs_f64();
    let expected = export(&whole, "scripted:a");
    let (mut random, mut kills, mut finished) = (Random::named(4, "kills"), 0, 0);
    let mut place = Workplace::new();
    while kills < KILLS || finished == 0 {
        let before = lines(&place);
        let mut command = place.command(&eval("scripted:a+slow"));
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_secs_f64(random.uniform() * seconds * 0.4));
        let ended = child.try_wait().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(lines(&place) >= before, "a document that was stored is gone");
        match ended {
            None => kills += 1,
            Some(status) => {
                assert!(status.success());
                finished += 1;
                assert_eq!(export(&place, "scripted:a"), expected, "after {kills} kills");
                let verified = place.run(&["runs", "--verify"]).done();
                assert!(verified.contains("3 manifests, 3 of them counted again: all is whole"), "{verified}");
                place = Workplace::new();
            }
        }
    }
}

/// Lets the files of `command` grow to `bytes`: what a full disk is to it.
fn with_disk_of(command: &mut Command, bytes: u64) {
    // SAFETY: both calls are async-signal-safe, as what stands between fork and exec must be.
    unsafe {
        command.pre_exec(move || {
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
            let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
            if libc::setrlimit(libc::RLIMIT_FSIZE, &limit) == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
        });
    }
}

#[test]
fn a_full_disk_is_an_error_and_what_was_stored_stays() {
    let whole = Workplace::new();
    whole.run(&[&["eval", "scripted:a"], &FLAGS[..]].concat()).done();
    let expected = export(&whole, "scripted:a");
    let largest = logs(&whole).iter().map(|path| std::fs::metadata(path).unwrap().len()).max().unwrap();
    for bytes in [0, 10, largest / 3, largest / 2, largest - 1] {
        let place = Workplace::new();
        let mut command = place.command(&[&["eval", "scripted:a"], &FLAGS[..]].concat());
        with_disk_of(&mut command, bytes);
        let error = place.end(command).failed();
        assert!(error.contains("can't append to") && error.contains(".jsonl"), "{bytes}: {error}");
        let verified = place.run(&["runs", "--verify"]).done();
        assert!(!verified.contains("note: "), "half a line was left: {verified}");
        place.run(&[&["eval", "scripted:a"], &FLAGS[..]].concat()).done();
        assert_eq!(export(&place, "scripted:a"), expected);
    }
}

/// Takes from root, if it is who runs this, the right to write where the folder says nobody may.
fn without_override(command: &mut Command) {
    const CAP_DAC_OVERRIDE: libc::c_ulong = 1;
    // SAFETY: one system call, async-signal-safe.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0);
            Ok(())
        });
    }
}

#[test]
fn what_cannot_be_written_is_said_before_the_work() {
    use std::os::unix::fs::PermissionsExt;
    let place = Workplace::new();
    place.run(&[&["eval", "scripted:a"], &FLAGS[..]].concat()).done();
    std::fs::create_dir(place.path("locked")).unwrap();
    std::fs::set_permissions(place.path("locked"), std::fs::Permissions::from_mode(0o555)).unwrap();
    // Each would fail at its first document, had it come so far.
    let model = "scripted:b+fails-after-0";
    let eval = [&["eval", model], &FLAGS[..]].concat();
    let compare = [&["compare", "scripted:a", model], &FLAGS[..]].concat();
    for (command, path) in [
        ([&eval[..], &["--samples", "locked/samples.jsonl"]].concat(), "locked/samples.jsonl"),
        ([&["--results", "locked/results"], &eval[..]].concat(), "locked/results"),
        ([&["--results", "fireval.toml"], &eval[..]].concat(), "fireval.toml"),
        ([&compare[..], &["--output", "locked/table.csv"]].concat(), "locked/table.csv"),
        ([&compare[..], &["--output", "locked"]].concat(), "locked"),
        ([&compare[..], &["--output", "locked/deep/table.csv"]].concat(), "locked/deep/table.csv"),
        ([&compare[..], &["--output", "tables/"]].concat(), "\"tables/\": a file's name is missing"),
    ] {
        place.write("fireval.toml", "");
        let mut limited = place.command(&command);
        without_override(&mut limited);
        let error = place.end(limited).failed();
        assert!(error.contains(path) && !error.contains("after 0 documents"), "{command:?}: {error}");
    }
    let mut export = place.command(&[&["export", "scripted:a", "--output", "locked/a.md"], &FLAGS[..]].concat());
    without_override(&mut export);
    assert!(place.end(export).failed().contains("locked/a.md"));
}

#[test]
fn damage_is_found_and_named() {
    let place = Workplace::new();
    place.run(&[&["eval", "scripted:a"], &FLAGS[..]].concat()).done();
    assert!(place.run(&["runs", "--verify"]).done().contains("21 documents, 3 manifests, 3 of them counted again"));
    let log = logs(&place).into_iter().find(|path| path.ends_with("arc_challenge.jsonl")).unwrap();
    let manifest = log.with_extension("json");
    let (text, stated) = (std::fs::read_to_string(&log).unwrap(), std::fs::read_to_string(&manifest).unwrap());
    let found = |expected: &str| {
        let ended = place.run(&["runs", "--verify"]);
        assert_eq!(ended.code, 1, "{} {}", ended.stdout, ended.stderr);
        assert!(ended.stdout.contains(expected), "{expected}: {}", ended.stdout);
        std::fs::write(&log, &text).unwrap();
        std::fs::write(&manifest, &stated).unwrap();
    };
    std::fs::write(&log, text.replacen("\"doc\":", "\"doc\":1", 1)).unwrap();
    found("arc_challenge.jsonl: line 1: the checksum is wrong");
    std::fs::write(&log, text.lines().skip(1).map(|line| format!("{line}\n")).collect::<String>()).unwrap();
    found("7 documents, of which its log holds 6; `fireval eval scripted:a` scores the others again");
    std::fs::write(&manifest, "{").unwrap();
    found("not a run's manifest");
    std::fs::write(&manifest, stated.replacen("\"schema\": 1", "\"schema\": 2", 1)).unwrap();
    found("schema 2 where this fireval writes 1");
    std::fs::write(&manifest, stated.replacen("\"engine\": \"", "\"engine\": \"x", 1)).unwrap();
    found("not its folder's");
    let value = stated.split("\"acc_norm\": {").nth(1).unwrap().split("\"value\": ").nth(1).unwrap();
    let value = value.split([',', '\n']).next().unwrap();
    std::fs::write(&manifest, stated.replace(&format!("\"value\": {value}"), "\"value\": 0.123")).unwrap();
    found("acc_norm is 0.123 where its documents give");
    // A torn tail is told and is nothing wrong.
    std::fs::write(&log, text.clone() + "{\"task\"").unwrap();
    assert!(place.run(&["runs", "--verify"]).done().contains("note: "));
}

#[test]
fn one_damaged_manifest_is_named_and_blocks_nobody_else() {
    let place = Workplace::new();
    place.run(&[&["eval", "scripted:a"], &FLAGS[..]].concat()).done();
    let whole = place.run(&["runs"]).done();
    let manifest = logs(&place).into_iter().find(|path| path.ends_with("gsm8k.jsonl")).unwrap().with_extension("json");
    let stated = std::fs::read_to_string(&manifest).unwrap();
    for damaged in ["{".to_owned(), stated.replace("\"metric\": \"acc\"", "\"metric\": \"acc_norm\"")] {
        std::fs::write(&manifest, damaged).unwrap();
        let listed = place.run(&["runs"]);
        assert_eq!((listed.code, listed.stdout.lines().count()), (1, whole.lines().count()), "{}", listed.stderr);
        assert!(listed.stdout.contains("gsm8k.json: not a run's manifest; it is made again by"), "{}", listed.stdout);
        assert!(!listed.stdout.contains("delete"), "{}", listed.stdout);
        assert_eq!(place.run(&["runs", "--verify"]).code, 1);
        let error = place.run(&["compare", "imported:x", "--data", "bundled"]).failed();
        assert!(error.contains("nothing was imported as imported:x"), "{error}");
        place.run(&[&["eval", "scripted:a"], &FLAGS[..]].concat()).done();
        assert_eq!(place.run(&["runs"]).done().lines().count(), whole.lines().count(), "made again");
    }
}

#[test]
fn two_folders_of_one_model_are_named() {
    let place = Workplace::new();
    place.run(&[&["eval", "scripted:a"], &FLAGS[..]].concat()).done();
    let first = std::fs::read_dir(place.path("results/runs")).unwrap().next().unwrap().unwrap().path();
    let name = first.file_name().unwrap().to_str().unwrap();
    let copy = format!("results/runs/copy-of-{name}");
    for file in files(&first) {
        let to = format!("{copy}/{}", file.strip_prefix(&first).unwrap().display());
        place.write(&to, &std::fs::read_to_string(&file).unwrap());
    }
    let error = place.run(&[&["export", "scripted:a"], &FLAGS[..]].concat()).failed();
    assert!(error.contains(&format!("runs/{name}")) && error.contains("move one of them"), "{error}");
    let verified = place.run(&["runs", "--verify"]);
    assert!(verified.code == 1 && verified.stdout.contains("a folder of the same model as"), "{}", verified.stdout);
}

/// Checkpoints that differ in one thing each, with a task of some hundred tokens.
fn identities() -> Workplace {
    let place = Workplace::new();
    let turned = |file: &str| {
        // Other weights of the same shapes: the last number's sign.
        let mut bytes = std::fs::read(place.path(file)).unwrap();
        *bytes.last_mut().unwrap() ^= 0x80;
        std::fs::write(place.path(file), bytes).unwrap();
    };
    for model in ["one", "two", "one-asked-otherwise", "two-asked-otherwise"] {
        place.tiny_mixtral(model);
        if model.starts_with("two") {
            turned(&format!("{model}/model.safetensors"));
        }
        if model.ends_with("otherwise") {
            let mut config: serde_json::Value =
                serde_json::from_str(&place.read(&format!("{model}/tokenizer_config.json"))).unwrap();
            let template = "{% for message in messages %}<{{ message.role }}> {{ message.content }} {% endfor %}";
            config["chat_template"] = template.into();
            place.write(&format!("{model}/tokenizer_config.json"), &config.to_string());
        }
    }
    for adapter in ["left", "right"] {
        for name in ["adapter_config.json", "adapter_model.safetensors"] {
            place.fixture(&format!("lora/{name}"), &format!("{adapter}/{name}"));
        }
    }
    turned("right/adapter_model.safetensors");
    let winogrande = place.run(&["tasks", "winogrande"]).done();
    place.write(
        "short.toml",
        &winogrande.replace("\"winogrande\"\ntitle", "\"short\"\ntitle").replace("shots = 5", "shots = 0"),
    );
    place
}

#[test]
fn the_cache_never_crosses_identities() {
    let place = identities();
    let mut project = String::new();
    let mut names = Vec::new();
    for model in ["one", "two", "one-asked-otherwise", "two-asked-otherwise"] {
        for adapter in ["", "left", "right"] {
            for dtype in ["f32", "bf16"] {
                let name = format!("{model}-{adapter}-{dtype}");
                project += &format!("[model.\"{name}\"]\npath = \"{model}\"\ndtype = \"{dtype}\"\n");
                if !adapter.is_empty() {
                    project += &format!("adapter = \"{adapter}\"\n");
                }
                names.push(name);
            }
        }
    }
    project +=
        "[data]\ndir = \"bundled\"\n[eval]\ntasks = [\"short.toml\"]\nlimit = 2\nprotocol = \"lm-eval-latest\"\n";
    place.write("fireval.toml", &project);
    let mut answers = BTreeSet::new();
    for name in &names {
        let samples = |results: &str, chat: bool| {
            let mut args = vec!["--results", results, "eval", name.as_str(), "--samples", "samples.jsonl"];
            args.extend(chat.then_some("--chat-template"));
            place.run(&args).done();
            place.read("samples.jsonl")
        };
        for chat in [false, true] {
            let shared = samples("shared", chat);
            let alone = samples(&format!("alone-{name}-{chat}"), chat);
            assert!(shared == alone, "{name}, chat template {chat}: another's answers were found");
            answers.insert(shared);
        }
    }
    assert_eq!(answers.len(), 12 + 24, "without a template the tokenizer's settings change no answer");
}
