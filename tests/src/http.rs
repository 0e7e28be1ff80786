//! A client for tests: one request a connection.

use std::io::{Read, Write};
use std::net::TcpStream;

/// An answer, taken apart.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: String,
    pub body: String,
}

/// GET of `path` at `address`, with more header lines, each ending in CRLF.
pub fn get(address: &str, path: &str, headers: &str) -> Answer {
    request(address, "GET", path, headers).unwrap()
}

/// POST of `body`, whose type and length are header lines as well.
pub fn post(address: &str, path: &str, headers: &str, body: &str) -> Answer {
    exchange(address, "POST", path, headers, body).unwrap()
}

/// Any method; an error when nobody answers.
pub fn request(address: &str, method: &str, path: &str, headers: &str) -> std::io::Result<Answer> {
    exchange(address, method, path, headers, "")
}

fn exchange(address: &str, method: &str, path: &str, headers: &str, body: &str) -> std::io::Result<Answer> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(crate::DEADLINE))?;
    let request =
        format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{headers}\r\n{body}");
    stream.write_all(request.as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").ok_or(std::io::ErrorKind::UnexpectedEof)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    Ok(Answer { status, headers: head.to_owned(), body: body.to_owned() })
}
