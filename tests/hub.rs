//! Models and data from a small server that answers as the hub does, on loopback.

mod binary;

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;

use binary::Workplace;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A server of files by path; it ends with the process.
fn serve(files: &'static [(&'static str, &'static str)]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            std::thread::spawn(move || answer(stream, files));
        }
    });
    format!("http://{address}")
}

fn answer(mut stream: TcpStream, files: &[(&str, &str)]) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let request = lines.next().unwrap().unwrap();
    let path = request.split(' ').nth(1).unwrap().to_owned();
    let headers: Vec<String> = lines.map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
    let range = headers.iter().find_map(|header| {
        let value = header.to_ascii_lowercase().strip_prefix("range: bytes=")?.to_owned();
        let (start, end) = value.split_once('-')?;
        Some((start.parse::<usize>().ok()?, end.parse::<usize>().ok()))
    });
    let found = files.iter().find(|(known, _)| *known == path).map(|(_, text)| text.as_bytes());
    let response = match (found, range) {
        (None, _) => b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".to_vec(),
        (Some(bytes), None) => part("200 OK", String::new(), bytes),
        (Some(bytes), Some((start, end))) => {
            let end = end.unwrap_or(bytes.len() - 1).min(bytes.len() - 1);
            let content_range = format!("content-range: bytes {start}-{end}/{}\r\n", bytes.len());
            part("206 Partial Content", content_range, &bytes[start..=end])
        }
    };
    let _ = stream.write_all(&response);
}

fn part(status: &str, more: String, bytes: &[u8]) -> Vec<u8> {
    // The blob is named after the etag, so files that differ need different ones.
    let etag = fireval::digest::sha256_hex(format!("{more}{}", bytes.len()).as_bytes());
    let etag = if more.is_empty() { etag } else { more.split('/').next_back().unwrap().trim().to_owned() };
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-length: {}\r\n{more}etag: \"e{etag}\"\r\nx-repo-commit: {COMMIT}\r\nconnection: close\r\n\r\n",
        bytes.len()
    );
    [head.as_bytes(), bytes].concat()
}

const FILES: &[(&str, &str)] = &[
    (
        "/api/models/org/small/revision/main",
        "{\"sha\":\"0123456789abcdef0123456789abcdef01234567\",\"siblings\":[{\"rfilename\":\"config.json\"},\
         {\"rfilename\":\"tokenizer.json\"},{\"rfilename\":\"README.md\"},{\"rfilename\":\"model.safetensors.index.json\"},\
         {\"rfilename\":\"one.safetensors\"},{\"rfilename\":\"two.safetensors\"},{\"rfilename\":\"pytorch_model.bin\"}]}",
    ),
    ("/org/small/resolve/main/config.json", "{\"a\":1}"),
    ("/org/small/resolve/main/tokenizer.json", "{\"tokens\":1}"),
    (
        "/org/small/resolve/main/model.safetensors.index.json",
        "{\"weight_map\":{\"x\":\"one.safetensors\",\"y\":\"two.safetensors\"}}",
    ),
    ("/org/small/resolve/main/one.safetensors", "the first shard"),
    ("/org/small/resolve/main/two.safetensors", "the second one"),
    (
        "/api/models/org/pickle/revision/main",
        "{\"sha\":\"0123456789abcdef0123456789abcdef01234567\",\"siblings\":[{\"rfilename\":\"config.json\"},\
         {\"rfilename\":\"tokenizer.json\"},{\"rfilename\":\"pytorch_model.bin\"}]}",
    ),
    ("/org/pickle/resolve/main/config.json", "{\"pickle\":1}"),
    ("/org/pickle/resolve/main/tokenizer.json", "{\"pickle tokens\":1}"),
    ("/org/quantised/resolve/v2/model.gguf", "GGUF and some more bytes"),
];

fn online(place: &Workplace, hub: &str, args: &[&str]) -> Command {
    let mut command = place.command(args);
    command.env_remove("HF_HUB_OFFLINE").env("HF_ENDPOINT", hub).env("NO_PROXY", "127.0.0.1");
    command.env_remove("http_proxy").env_remove("HTTP_PROXY").env_remove("all_proxy").env_remove("ALL_PROXY");
    command
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn a_model_is_fetched_whole_and_once() {
    let (place, hub) = (Workplace::new(), serve(FILES));
    place.end(online(&place, &hub, &["fetch", "org/small", "--out", "models/small"])).done();
    let out = place.path("models/small");
    assert_eq!(text(&out.join("config.json")), "{\"a\":1}");
    assert_eq!(text(&out.join("one.safetensors")), "the first shard");
    assert_eq!(text(&out.join("two.safetensors")), "the second one");
    assert!(!out.join("pytorch_model.bin").exists() && !out.join("README.md").exists());
    // All of it is in the cache now, so no network is needed.
    let cached = place.run(&["fetch", "org/small"]).done();
    assert!(Path::new(cached.trim()).join("two.safetensors").exists());
    let again = place.end(online(&place, &hub, &["fetch", "org/small", "--out", "models/small"])).failed();
    assert!(again.contains("exists already"), "{again}");
}

#[test]
fn a_gguf_file_is_fetched_by_its_name_and_revision() {
    let (place, hub) = (Workplace::new(), serve(FILES));
    let path = place.end(online(&place, &hub, &["fetch", "org/quantised@v2:model.gguf"])).done();
    assert_eq!(text(Path::new(path.trim())), "GGUF and some more bytes");
}

#[test]
fn what_the_hub_lacks_is_said() {
    let (place, hub) = (Workplace::new(), serve(FILES));
    let fail = |repository: &str| place.end(online(&place, &hub, &["fetch", repository])).failed();
    let pickle = fail("org/pickle");
    assert!(pickle.contains("pytorch_model.bin") && pickle.contains("safetensors"), "{pickle}");
    let none = fail("org/none");
    assert!(none.contains("org/none") && none.contains("no such repository"), "{none}");
    let offline = place.run(&["fetch", "org/none"]).failed();
    assert!(offline.contains("HF_HUB_OFFLINE"), "{offline}");
    let unreachable =
        place.end(online(&place, "http://127.0.0.1:9", &["eval", "org/none", "--data", "bundled"])).failed();
    assert!(unreachable.contains("give the folder"), "{unreachable}");
}
