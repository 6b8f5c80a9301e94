//! Asks a running controller or gateway whether it can do its work: what `helm test` runs, where there is no shell and no
//! curl.
//!
//! It asks `/readyz`: whether the API server is heard, the lists were read, and what guards the requests stands. Whether AWS
//! lets the operator push a key shows with the first grant. Of a gateway it also asks for the greeting, at the address that
//! people connect to, and goes away.

use std::io::{BufRead, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use crate::gateway::GREETING;

/// Gap between two questions: an operator that starts is ready within a few seconds.
const INTERVAL: Duration = Duration::from_secs(1);
/// The longest that one question may take, for each address and each read.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The longest greeting that is read, in bytes. Source: RFC 4253, section 4.2, with the line's end.
const GREETING_BYTES_MAX: u64 = 255;
/// The longest answer that is read, in bytes: findings about a dozen objects are some kilobytes.
const ANSWER_BYTES_MAX: u64 = 64 * 1024;

/// Asks until it says that it is ready, and greets at `ssh` if that is given, for `wait` at most; returns its words.
///
/// # Errors
/// If it does not become ready, with what it said last.
pub fn ask(at: &str, ssh: Option<&str>, wait: Duration) -> Result<String, ReadyError> {
    let start = Instant::now();
    loop {
        let error = match ask_once(at, ssh) {
            Ok(said) => return Ok(said),
            Err(error) => error,
        };
        if start.elapsed() + INTERVAL > wait {
            return Err(error);
        }
        std::thread::sleep(INTERVAL);
    }
}

fn ask_once(at: &str, ssh: Option<&str>) -> Result<String, ReadyError> {
    let said = match at_any_address(at, |stream| converse(stream, at)) {
        Ok((200, body)) => body,
        Ok((code, body)) => return Err(ReadyError::NotReady { at: at.to_owned(), code, body }),
        Err(source) => return Err(ReadyError::Ask { at: at.to_owned(), source }),
    };
    let Some(ssh) = ssh else { return Ok(said) };
    match at_any_address(ssh, greeting) {
        Ok(greeting) if greeting == GREETING => Ok(format!("{said}\n{ssh}: {greeting}")),
        Ok(greeting) => Err(ReadyError::Stranger { ssh: ssh.to_owned(), greeting }),
        Err(source) => Err(ReadyError::Greet { ssh: ssh.to_owned(), source }),
    }
}

/// What the first address of a name that answers at all says.
fn at_any_address<T>(name: &str, speak: impl Fn(TcpStream) -> std::io::Result<T>) -> std::io::Result<T> {
    let mut last = std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no address");
    for address in name.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, TIMEOUT).and_then(&speak) {
            Ok(answer) => return Ok(answer),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// The first line, without its end. What is not printable is left out: it goes to a terminal.
fn greeting(stream: TcpStream) -> std::io::Result<String> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    let mut line = Vec::new();
    std::io::BufReader::new(stream.take(GREETING_BYTES_MAX)).read_until(b'\n', &mut line)?;
    let line: String =
        line.iter().map(|&byte| char::from(byte)).filter(|c| c.is_ascii_graphic() || *c == ' ').collect();
    if line.is_empty() { Err(std::io::ErrorKind::UnexpectedEof.into()) } else { Ok(line) }
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
    #[error("what runs at {at} is not ready ({code}): {body}")]
    NotReady {
        /// Where it was asked.
        at: String,
        /// The HTTP status of its answer.
        code: u16,
        /// Its own words.
        body: String,
    },
    /// Nobody answers there.
    #[error("nothing answers at {at}; is its pod running, and does a NetworkPolicy let this one in?")]
    Ask {
        /// Where it was asked.
        at: String,
        /// Why.
        source: std::io::Error,
    },
    /// It says that it is ready, and nobody greets where people connect.
    #[error(
        "a gateway is ready, and none greets at {ssh}; does the Service lead to it, and does a NetworkPolicy let this one in?"
    )]
    Greet {
        /// Where clients connect.
        ssh: String,
        /// Why.
        source: std::io::Error,
    },
    /// Something else greets there.
    #[error("what greets at {ssh} is no gateway of ours: {greeting:?}; where does the Service lead?")]
    Stranger {
        /// Where clients connect.
        ssh: String,
        /// Its first line.
        greeting: String,
    },
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use tokio::net::TcpSocket;

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

    /// Where nobody answers, for as long as the socket is held: it has the port, and does not listen.
    fn nobody() -> (TcpSocket, String) {
        let silent = TcpSocket::new_v4().unwrap();
        silent.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let at = silent.local_addr().unwrap().to_string();
        (silent, at)
    }

    const READY: &str = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nready";
    const UNREADY: &str =
        "HTTP/1.1 503 Service Unavailable\r\n\r\nEnforcementMissing: status.instanceaccess.dev is missing";

    #[test]
    fn a_controller_that_becomes_ready_is_waited_for() {
        let at = answering(&[UNREADY, READY]);
        assert_eq!(ask(&at, None, Duration::from_secs(30)).unwrap(), "ready");
    }

    #[test]
    fn one_that_does_not_is_quoted() {
        let error = ask(&answering(&[UNREADY]), None, Duration::ZERO).unwrap_err().to_string();
        assert!(error.contains("not ready (503): EnforcementMissing: status.instanceaccess.dev is missing"), "{error}");
    }

    #[test]
    fn what_is_no_controller_is_not_taken_for_a_ready_one() {
        for answer in
            [&["SSH-2.0-OpenSSH_9.2\r\n\r\n"][..], &["HTTP/1.1 302 Found\r\n\r\n"], &[""], &["HTTP/1.1 2000 OK"]]
        {
            ask(&answering(answer), None, Duration::ZERO).unwrap_err();
        }
        let (_held, nobody) = nobody();
        let error = ask(&nobody, None, Duration::ZERO).unwrap_err().to_string();
        assert!(error.contains("nothing answers at 127.0.0.1:"), "{error}");
    }

    /// Greets so, once, and closes.
    fn greeting_with(line: &'static str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap().to_string();
        std::thread::spawn(move || listener.accept().unwrap().0.write_all(line.as_bytes()).unwrap());
        at
    }

    #[test]
    fn a_gateway_must_greet_where_people_connect() {
        let ask = |ssh: &str| super::ask(&answering(&[READY]), Some(ssh), Duration::ZERO);
        let ssh = greeting_with("SSH-2.0-InstanceAccess\r\n");
        assert_eq!(ask(&ssh).unwrap(), format!("ready\n{ssh}: SSH-2.0-InstanceAccess"));
        let (_held, nobody) = nobody();
        assert!(ask(&nobody).unwrap_err().to_string().contains("none greets"));
        for (line, words) in [
            ("SSH-2.0-OpenSSH_9.2p1\r\n", "no gateway of ours: \"SSH-2.0-OpenSSH_9.2p1\""),
            ("SSH-2.0-InstanceAccess-Not\r\n", "no gateway of ours"),
            ("\u{1b}]0;pwned\u{7}\r\n", "no gateway of ours: \"]0;pwned\""),
            ("", "none greets"),
            ("\r\n", "none greets"),
        ] {
            let error = ask(&greeting_with(line)).unwrap_err().to_string();
            assert!(error.contains(words), "{line:?}: {error}");
        }
        // One that is not ready is not asked for its greeting.
        let error = super::ask(&answering(&[UNREADY]), Some(&nobody), Duration::ZERO).unwrap_err().to_string();
        assert!(error.contains("is not ready (503)"), "{error}");
    }
}
