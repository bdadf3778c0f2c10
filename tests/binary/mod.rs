//! The real binary in a temporary folder.

#![allow(dead_code)] // each test file uses its part

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Bytes of the largest child so far.
#[cfg(target_os = "linux")]
pub fn peak() -> u64 {
    // SAFETY: the kernel fills a plain struct of numbers, whose zeros are valid too.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        assert_eq!(libc::getrusage(libc::RUSAGE_CHILDREN, &mut usage), 0);
        usage
    };
    usage.ru_maxrss as u64 * 1024
}

/// Runs a command that must do its work, and gives the bytes of its own largest resident set.
#[cfg(target_os = "linux")]
#[allow(clippy::zombie_processes)] // `wait4` does it
pub fn peak_of(mut command: Command) -> u64 {
    let child = command.stdout(Stdio::null()).spawn().unwrap();
    // SAFETY: the kernel fills a plain struct of numbers, whose zeros are valid too; nobody else waits for this child.
    let (status, usage) = unsafe {
        let (mut status, mut usage) = (0, std::mem::zeroed::<libc::rusage>());
        assert_eq!(libc::wait4(child.id() as i32, &mut status, 0, &mut usage), child.id() as i32);
        (status, usage)
    };
    assert_eq!(status, 0, "{command:?}");
    usage.ru_maxrss as u64 * 1024
}

/// A task of rows with a `question`, `options` and the index of the `answer`, in the folder of its name.
pub fn multiple_choice(name: &str) -> String {
    format!(
        r#"name = "{name}"
version = 1
metric = "acc"
shots = 0

[data]
folder = "{name}"
evaluation = "test"

[prompt]
shape = "multiple-choice"
text = "{{question}}"
choices_field = "options"
gold = {{ index = "answer" }}
"#
    )
}

/// A folder that commands run in, away from the user's caches.
pub struct Workplace {
    folder: tempfile::TempDir,
}

/// How a command ended.
#[derive(Debug)]
pub struct Ended {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Workplace {
    pub fn new() -> Workplace {
        Workplace { folder: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    pub fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Copies a file of `tests/fixtures` to `to`.
    pub fn fixture(&self, from: &str, to: &str) {
        let to = self.path(to);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(from), to).unwrap();
    }

    /// The tiny Mixtral with a byte-level tokenizer, as the folder `to`.
    pub fn tiny_mixtral(&self, to: &str) {
        for name in ["config.json", "model.safetensors"] {
            self.fixture(&format!("tiny-mixtral/{name}"), &format!("{to}/{name}"));
        }
        for name in ["tokenizer.json", "tokenizer_config.json"] {
            self.fixture(&format!("dialogues/byte-level/{name}"), &format!("{to}/{name}"));
        }
    }

    /// The binary with nothing of this machine's hub settings.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fireval"));
        command.args(args).current_dir(self.folder.path()).stdin(Stdio::null());
        command.env("HF_HOME", self.path("hub-cache")).env("HF_HUB_OFFLINE", "1");
        command.env_remove("HF_TOKEN").env_remove("HF_ENDPOINT");
        command.env_remove("GITHUB_ACTIONS").env_remove("GITHUB_STEP_SUMMARY");
        command
    }

    pub fn run(&self, args: &[&str]) -> Ended {
        self.end(self.command(args))
    }

    pub fn end(&self, mut command: Command) -> Ended {
        let output = command.output().unwrap();
        Ended {
            code: output.status.code().expect("not ended by a signal"),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Runs with a standard output that nobody reads.
    pub fn run_into_closed_pipe(&self, args: &[&str]) -> Ended {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = self.command(args);
        command.stdout(writer).stderr(Stdio::piped());
        let output = command.spawn().unwrap().wait_with_output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        Ended { code: output.status.code().expect("not ended by a signal"), stdout: String::new(), stderr }
    }
}

impl Ended {
    /// Standard output of a command that did its work.
    pub fn done(self) -> String {
        assert_eq!(self.code, 0, "{}", self.stderr);
        self.stdout
    }

    /// Standard error of one that could not.
    pub fn failed(self) -> String {
        assert_eq!(self.code, 2, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        self.stderr
    }
}
