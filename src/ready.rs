//! Asks a running controller whether it can do its work: what `helm test` runs, where there is no shell and no curl.
//!
//! It asks `/readyz` and nothing else: whether the API server is heard, the lists were read, and what guards the requests
//! stands. Whether AWS lets the operator push a key shows with the first grant.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

/// Gap between two questions: an operator that starts is ready within a few seconds.
const INTERVAL: Duration = Duration::from_secs(1);
/// The longest that one question may take, for each address and each read.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The longest answer that is read, in bytes: findings about a dozen objects are some kilobytes.
const ANSWER_BYTES_MAX: u64 = 64 * 1024;

/// Asks until the controller says that it is ready, for `wait` at most; returns its word.
///
/// # Errors
/// If it does not become ready, with what it said last.
pub fn ask(at: &str, wait: Duration) -> Result<String, ReadyError> {
    let start = Instant::now();
    loop {
        let error = match ask_once(at) {
            Ok((200, body)) => return Ok(body),
            Ok((code, body)) => ReadyError::NotReady { at: at.to_owned(), code, body },
            Err(source) => ReadyError::Ask { at: at.to_owned(), source },
        };
        if start.elapsed() + INTERVAL > wait {
            return Err(error);
        }
        std::thread::sleep(INTERVAL);
    }
}

fn ask_once(at: &str) -> std::io::Result<(u16, String)> {
    let mut last = std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no address");
    for address in at.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, TIMEOUT).and_then(|stream| converse(stream, at)) {
            Ok(answer) => return Ok(answer),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn converse(mut stream: TcpStream, at: &str) -> std::io::Result<(u16, String)> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    stream.write_all(format!("GET /readyz HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
    parse(&String::from_utf8_lossy(&answer))
        .ok_or_else(|| std::io::Error::new(std::io::ErrorKind::InvalidData, "what answers there speaks no HTTP"))
}

/// The status and the body of an answer.
fn parse(answer: &str) -> Option<(u16, String)> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let code = head.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
    Some((code, body.trim().to_owned()))
}

/// Why it is not known to be ready.
#[derive(Debug, thiserror::Error)]
pub enum ReadyError {
    /// It says that it is not.
    #[error("the controller at {at} is not ready ({code}): {body}")]
    NotReady {
        /// Where it was asked.
        at: String,
        /// The HTTP status of its answer.
        code: u16,
        /// Its own words.
        body: String,
    },
    /// Nobody answers there.
    #[error("the controller at {at} does not answer; is its pod running, and does a NetworkPolicy let this one in?")]
    Ask {
        /// Where it was asked.
        at: String,
        /// Why.
        source: std::io::Error,
    },
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// Answers so, one question after the other.
    fn answering(answers: &'static [&'static str]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap().to_string();
        std::thread::spawn(move || {
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let mut asked = [0; 512];
                let length = stream.read(&mut asked).unwrap();
                assert!(asked[..length].starts_with(b"GET /readyz HTTP/1.1\r\n"));
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        at
    }

    const READY: &str = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nready";
    const UNREADY: &str =
        "HTTP/1.1 503 Service Unavailable\r\n\r\nEnforcementMissing: status.instanceaccess.dev is missing";

    #[test]
    fn a_controller_that_becomes_ready_is_waited_for() {
        let at = answering(&[UNREADY, READY]);
        assert_eq!(ask(&at, Duration::from_secs(30)).unwrap(), "ready");
    }

    #[test]
    fn one_that_does_not_is_quoted() {
        let error = ask(&answering(&[UNREADY]), Duration::ZERO).unwrap_err().to_string();
        assert!(error.contains("not ready (503): EnforcementMissing: status.instanceaccess.dev is missing"), "{error}");
    }

    #[test]
    fn what_is_no_controller_is_not_taken_for_a_ready_one() {
        for answer in
            [&["SSH-2.0-OpenSSH_9.2\r\n\r\n"][..], &["HTTP/1.1 302 Found\r\n\r\n"], &[""], &["HTTP/1.1 2000 OK"]]
        {
            ask(&answering(answer), Duration::ZERO).unwrap_err();
        }
        let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let error = ask(&nobody, Duration::ZERO).unwrap_err().to_string();
        assert!(error.contains("does not answer"), "{error}");
    }
}
