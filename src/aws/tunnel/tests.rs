//! An endpoint that is slow, hostile, or merely AWS: at the other end of a pipe, and by a clock that the test moves.

use futures::{SinkExt, StreamExt};
use tokio::io::DuplexStream;
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::*;

const GREETING: &[u8] = b"SSH-2.0-OpenSSH_9.9\r\n";
const HOUR: Duration = Duration::from_secs(3600);

type Socket = WebSocketStream<DuplexStream>;

/// Asks an endpoint that does `serve`, over a pipe that holds so many bytes each way.
async fn asked_over<F, T>(
    pipe_bytes: usize,
    lasts: Duration,
    serve: impl FnOnce(DuplexStream) -> F,
) -> (Result<Tunnel, Failure>, JoinHandle<T>)
where
    F: Future<Output = T> + Send + 'static,
    T: Send + 'static,
{
    let (ours, theirs) = tokio::io::duplex(pipe_bytes);
    let serving = tokio::spawn(serve(theirs));
    (Tunnel::ask(Box::new(ours), "eice-1.example.test", "/openTunnel?a=b", lasts).await, serving)
}

/// Asks an endpoint that opens a websocket, and then does `serve`.
async fn opened<F, T>(serve: impl FnOnce(Socket) -> F + Send + 'static) -> (Result<Tunnel, Failure>, JoinHandle<T>)
where
    F: Future<Output = T> + Send + 'static,
    T: Send + 'static,
{
    asked_over(1 << 16, HOUR, |stream| async move { serve(accepted(stream).await).await }).await
}

/// Reads the request; returns its key.
async fn request(stream: &mut DuplexStream) -> String {
    let mut read = Vec::new();
    while !read.ends_with(b"\r\n\r\n") {
        read.push(stream.read_u8().await.unwrap());
    }
    let text = String::from_utf8(read).unwrap();
    assert!(text.starts_with("GET /openTunnel?a=b HTTP/1.1\r\nHost: eice-1.example.test\r\n"), "{text}");
    let key = text.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Key: "));
    key.expect("a key").to_owned()
}

fn switching(key: &str, more: &str) -> String {
    let accept = derive_accept_key(key.as_bytes());
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: WebSocket\r\nConnection: keep-alive, upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\n{more}\r\n"
    )
}

async fn switched(stream: &mut DuplexStream) {
    let key = request(stream).await;
    stream.write_all(switching(&key, "").as_bytes()).await.unwrap();
}

async fn accepted(mut stream: DuplexStream) -> Socket {
    switched(&mut stream).await;
    WebSocketStream::from_raw_socket(stream, Role::Server, None).await
}

fn binary(bytes: &[u8]) -> Message {
    Message::Binary(Bytes::copy_from_slice(bytes))
}

/// Everything that comes until the end.
async fn all(tunnel: &Tunnel) -> Vec<u8> {
    let mut read = Vec::new();
    while let Some(bytes) = tunnel.next().await {
        assert!(!bytes.is_empty());
        read.extend_from_slice(&bytes);
    }
    assert!(tunnel.next().await.is_none(), "the end is the end");
    read
}

#[tokio::test(start_paused = true)]
async fn bytes_go_both_ways_in_bounded_frames_and_pings_are_answered() {
    let sent: Vec<u8> = (0..300_000_u32).map(|n| n as u8).collect();
    let expected = sent.clone();
    let (tunnel, serving) = opened(move |mut socket| async move {
        socket.send(binary(GREETING)).await.unwrap();
        let (mut heard, mut frames) = (Vec::new(), 0);
        socket.send(Message::Ping(Bytes::from_static(b"there?"))).await.unwrap();
        let mut ponged = false;
        while heard.len() < expected.len() {
            match socket.next().await.unwrap().unwrap() {
                Message::Binary(bytes) => {
                    assert!(bytes.len() <= SENT_BYTES_MAX, "{}", bytes.len());
                    frames += 1;
                    heard.extend_from_slice(&bytes);
                }
                Message::Pong(bytes) => ponged = bytes.as_ref() == b"there?",
                other => panic!("{other:?}"),
            }
        }
        assert!(heard == expected && frames == 10 && ponged, "{frames} frames, ponged: {ponged}");
        socket.send(binary(b"")).await.unwrap();
        socket.send(binary(b"bye")).await.unwrap();
        socket.close(None).await.unwrap();
    })
    .await;
    let tunnel = tunnel.unwrap();
    assert_eq!(tunnel.next().await.unwrap().as_ref(), GREETING);
    let both = async { tokio::join!(tunnel.send(&sent), all(&tunnel)) };
    let (sending, rest) = both.await;
    sending.unwrap();
    assert_eq!(rest, b"bye");
    serving.await.unwrap();
    assert!(tunnel.send(b"late").await.is_err(), "a closed tunnel takes nothing");
}

#[tokio::test(start_paused = true)]
async fn whatever_an_endpoint_refuses_with_becomes_a_class_and_a_text() {
    use FailureClass::{Bug, Invalid, Refused, Retry, Throttled};
    let known = r#"{"ErrorCode":"InvalidParameter","Message":"The specified RemotePort is not valid."}"#;
    let sized = |status: &str, body: &str| format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let long = format!(r#"{{"ErrorCode":"InvalidParameter","Message":"{}"}}"#, "a ".repeat(3000));
    for (answer, class, code, text) in [
        (sized("400 Bad Request", known), Invalid, "InvalidParameter", "The specified RemotePort is not valid."),
        (
            format!("HTTP/1.1 400 Bad\r\n\r\n{known}"),
            Invalid,
            "InvalidParameter",
            "The specified RemotePort is not valid.",
        ),
        (
            format!("HTTP/1.1 400 Bad\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{known}\r\n0\r\n\r\n", known.len()),
            Invalid,
            "InvalidParameter",
            "The specified RemotePort is not valid.",
        ),
        (
            sized("403 Forbidden", r#"{"ErrorCode":"AccessDenied","Message":"User: AKIAIOSFODNN7EXAMPLE may not"}"#),
            Refused,
            "AccessDenied",
            "User: *** may not",
        ),
        (
            sized("429 Too Many", r#"{"ErrorCode":"TooManyConnections","Message":"The limit is reached."}"#),
            Throttled,
            "TooManyConnections",
            "The limit is reached.",
        ),
        (sized("503 Unavailable", r#"{"ErrorCode":"Novelty","Message":"x"}"#), Retry, "Novelty", "x"),
        (sized("418 Teapot", r#"{"ErrorCode":"Novelty","Message":"x"}"#), Bug, "Novelty", "x"),
        (sized("502 Bad Gateway", "<html>{}</html>"), Retry, "Http502", "the endpoint does not say why"),
        (sized("403 Forbidden", ""), Bug, "Http403", "the endpoint does not say why"),
        (
            sized("400 Bad", "{\"ErrorCode\":\"Inv\\u0000alid\\n\",\"Message\":\"two\\nlines\\u001b[31m\"}"),
            Bug,
            "Invalid",
            "two lines [31m",
        ),
        (sized("400 Bad", &long), Invalid, "InvalidParameter", "a a a"),
        (sized("400 Bad", r#"{"ErrorCode":7,"Message":[]}"#), Bug, "Http400", "the endpoint does not say why"),
        // Followed nowhere: the signature is for this endpoint, and so is the trust.
        (
            "HTTP/1.1 301 Moved\r\nLocation: https://evil.example/\r\n\r\n".to_owned(),
            Bug,
            "Http301",
            "the endpoint does not say why",
        ),
        (
            "HTTP/1.1 200 OK\r\n\r\n<html>Welcome to the hotel".to_owned(),
            Bug,
            "Http200",
            "the endpoint does not say why",
        ),
    ] {
        let said = answer.clone();
        let (tunnel, _) = asked_over(1 << 16, HOUR, |mut stream| async move {
            request(&mut stream).await;
            let (head, body) = said.split_at(said.find("\r\n\r\n").unwrap() + 4);
            stream.write_all(head.as_bytes()).await.unwrap();
            // In a packet of its own, and the line stays open: the body's length or our patience ends it.
            tokio::time::sleep(Duration::from_millis(50)).await;
            let _ = stream.write_all(body.as_bytes()).await;
            futures::future::pending::<()>().await;
        })
        .await;
        let failed = tunnel.expect_err(&answer);
        assert_eq!((failed.class, failed.code.as_str()), (class, code), "{answer}");
        assert!(
            failed.message.starts_with(text) && failed.message.chars().count() <= 512,
            "{answer}: {}",
            failed.message
        );
        assert!(!failed.message.contains(char::is_control), "{answer}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_no_websocket_is_refused_and_no_wait_is_for_ever() {
    let start = Instant::now();
    let plain = |text: &'static str| move |_: &str| text.as_bytes().to_vec();
    let bent =
        |from: &'static str, to: &'static str| move |key: &str| switching(key, "").replace(from, to).into_bytes();
    let more = |more: &'static str| move |key: &str| switching(key, more).into_bytes();
    type Answer = Box<dyn Fn(&str) -> Vec<u8> + Send>;
    let answers: Vec<(&str, Answer, &str)> = vec![
        ("no accept", Box::new(bent("Sec-WebSocket-Accept", "X-Accept")), NO_WEBSOCKET),
        ("another's accept", Box::new(|_| switching("bm90IG91cnM=", "").into_bytes()), NO_WEBSOCKET),
        ("no upgrade", Box::new(bent("Upgrade: WebSocket", "Upgrade: h2c")), NO_WEBSOCKET),
        ("no connection", Box::new(bent("keep-alive, upgrade", "upgraded")), NO_WEBSOCKET),
        ("an extension", Box::new(more("Sec-WebSocket-Extensions: permessage-deflate\r\n")), NO_WEBSOCKET),
        ("a protocol", Box::new(more("Sec-WebSocket-Protocol: mqtt\r\n")), NO_WEBSOCKET),
        ("no HTTP", Box::new(plain("SSH-2.0-OpenSSH_9.9\r\n\r\n")), NO_WEBSOCKET),
        ("HTTP/1.0", Box::new(bent("HTTP/1.1", "HTTP/1.0")), NO_WEBSOCKET),
        ("a header that is none", Box::new(more("\u{1}: x\r\n")), NO_WEBSOCKET),
        ("200 headers", Box::new(|key| switching(key, &"A: b\r\n".repeat(200)).into_bytes()), NO_WEBSOCKET),
        (
            "a head without end",
            Box::new(|key| switching(key, &format!("A: {}", "b".repeat(1 << 20))).into_bytes()),
            NO_WEBSOCKET,
        ),
        ("half a head", Box::new(|key| switching(key, "").into_bytes()[..40].to_vec()), class::TIMEOUT),
        ("silence", Box::new(plain("")), class::TIMEOUT),
    ];
    for (name, answer, code) in answers {
        let (tunnel, _) = asked_over(1 << 12, HOUR, |mut stream| async move {
            let key = request(&mut stream).await;
            let _ = stream.write_all(&answer(&key)).await;
            futures::future::pending::<()>().await;
        })
        .await;
        let failed = tunnel.expect_err(name);
        assert_eq!((failed.class, failed.code.as_str()), (FailureClass::Retry, code), "{name}: {failed}");
    }
    assert!(start.elapsed() < 3 * ANSWER_TIMEOUT, "{:?}", start.elapsed());

    // A byte a second, for ever.
    let (slow, _) = asked_over(1 << 12, HOUR, |mut stream| async move {
        let key = request(&mut stream).await;
        for byte in switching(&key, "").bytes() {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let _ = stream.write_u8(byte).await;
        }
    })
    .await;
    assert_eq!(slow.unwrap_err().code, class::TIMEOUT);
    let (hangs_up, _) = asked_over(1 << 12, HOUR, |mut stream| async move {
        let key = request(&mut stream).await;
        let _ = stream.write_all(&switching(&key, "").as_bytes()[..40]).await;
    })
    .await;
    assert_eq!(hangs_up.unwrap_err().code, NO_WEBSOCKET);
    // One that takes not even the question.
    let (deaf, _) = asked_over(16, HOUR, |stream| async move {
        let _stream = stream;
        futures::future::pending::<()>().await;
    })
    .await;
    assert_eq!(deaf.unwrap_err().code, class::TIMEOUT);
}

/// A frame of a server, as it stands on the wire.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    match payload.len() {
        length @ ..126 => bytes.push(length as u8),
        length @ 126..=0xffff => {
            bytes.push(126);
            bytes.extend((length as u16).to_be_bytes());
        }
        length => {
            bytes.push(127);
            bytes.extend((length as u64).to_be_bytes());
        }
    }
    bytes.extend(payload);
    bytes
}

#[tokio::test(start_paused = true)]
async fn hostile_frames_end_the_tunnel_and_nothing_else() {
    let huge = |length: u64| [&[0x82, 127][..], &length.to_be_bytes()].concat();
    let many = |first: u8, each: usize, count: usize| {
        let mut bytes = frame(first, &vec![7; each]);
        (0..count).for_each(|_| bytes.extend(frame(0x00, &vec![7; each])));
        bytes
    };
    for (name, bytes, expected) in [
        ("text", frame(0x81, b"hello"), &b""[..]),
        ("text that is no UTF-8", frame(0x81, b"\xff\xfe"), b""),
        ("a frame of 2 MiB", huge(2 << 20), b""),
        ("a frame of 8 EiB", huge(u64::MAX >> 1), b""),
        ("a frame of 16 EiB", huge(u64::MAX), b""),
        ("masked", vec![0x82, 0x81, 1, 2, 3, 4, b'x' ^ 1], b""),
        ("a reserved bit", frame(0xc2, b"x"), b""),
        ("a reserved kind of data", frame(0x83, b"x"), b""),
        ("a reserved kind of control", frame(0x8b, b"x"), b""),
        ("a ping in parts", frame(0x09, b"x"), b""),
        ("a ping of 126 bytes", frame(0x89, &[7; 126]), b""),
        ("a part of nothing", frame(0x80, b"x"), b""),
        ("a start within a message", [frame(0x02, b"a"), frame(0x82, b"b")].concat(), b""),
        ("a message of 2 MiB in parts", many(0x02, 0xffff, 32), b""),
        ("a million empty parts", many(0x02, 0, 1 << 20), b""),
        ("text in parts of another message", [frame(0x02, b"a"), frame(0x81, b"b")].concat(), b""),
        ("a close of one byte", frame(0x88, b"x"), b""),
        ("a close with a code that nobody may send", frame(0x88, &[0, 5]), b""),
        ("a close with no UTF-8", frame(0x88, b"\x03\xe8\xff\xfe"), b""),
        ("a close", frame(0x88, b"\x03\xe8"), b""),
        ("an empty close", frame(0x88, b""), b""),
        ("bytes after a close", [frame(0x88, b"\x03\xe8"), frame(0x82, b"late")].concat(), b""),
        ("a frame that breaks off", frame(0x82, b"whole")[..4].to_vec(), b""),
        ("a header that breaks off", vec![0x82, 127, 0, 0], b""),
        ("nothing", Vec::new(), b""),
        // And what is odd, but sound.
        ("bytes, and a close in the middle of the next", [frame(0x82, b"a"), vec![0x82, 5, b'x']].concat(), b"a"),
        ("a message in parts", [frame(0x02, b"ab"), frame(0x00, b"cd"), frame(0x80, b"ef")].concat(), b"abcdef"),
        ("a ping between parts", [frame(0x02, b"a"), frame(0x89, b"p"), frame(0x80, b"b")].concat(), b"ab"),
        ("ten thousand pings", [frame(0x89, b"p").repeat(10_000), frame(0x82, b"a")].concat(), b"a"),
        ("ten thousand empty ones", [frame(0x82, b"").repeat(10_000), frame(0x82, b"a")].concat(), b"a"),
        ("a pong that nobody asked for", [frame(0x8a, b"p"), frame(0x82, b"a")].concat(), b"a"),
        ("the most that is taken", frame(0x82, &[7; TAKEN_BYTES_MAX])[..].to_vec(), &[7; TAKEN_BYTES_MAX]),
    ] {
        let rest = read_after_greeting(name, bytes).await;
        assert!(rest == expected, "{name}: {} bytes", rest.len());
    }
}

/// Sends these bytes after a greeting, and the end; returns what came out of the tunnel, which must come to its end.
async fn read_after_greeting(name: &str, bytes: Vec<u8>) -> Vec<u8> {
    let (tunnel, serving) = asked_over(1 << 16, HOUR, |mut stream| async move {
        switched(&mut stream).await;
        let greeted = [frame(0x82, GREETING), bytes].concat();
        let (mut from, mut to) = tokio::io::split(stream);
        // Whoever is answered must read, and whoever is cut must not care.
        let answers = tokio::spawn(async move { tokio::io::copy(&mut from, &mut tokio::io::sink()).await });
        let _ = to.write_all(&greeted).await;
        let _ = to.shutdown().await;
        let _ = answers.await;
    })
    .await;
    let tunnel = tunnel.unwrap_or_else(|failed| panic!("{name}: {failed}"));
    assert_eq!(tunnel.next().await.unwrap().as_ref(), GREETING, "{name}");
    let rest = timeout(Duration::from_secs(60), all(&tunnel)).await.unwrap_or_else(|_| panic!("{name}: no end"));
    let why = tunnel.why_closed().unwrap();
    assert!(!why.is_empty() && why.len() <= 512 && !why.contains(char::is_control), "{name}: {why:?}");
    drop(tunnel);
    timeout(Duration::from_secs(60), serving).await.unwrap_or_else(|_| panic!("{name}: left open")).unwrap();
    rest
}

/// Numbers that look random and are the same each time.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self, below: u64) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % below
    }
}

#[tokio::test(start_paused = true)]
async fn whatever_an_endpoint_sends_a_tunnel_comes_to_its_end() {
    const FIRST: [u8; 10] = [0x82, 0x82, 0x02, 0x00, 0x80, 0x89, 0x8a, 0x88, 0x81, 0x01];
    for seed in 0..600 {
        let mut numbers = Numbers(seed);
        let mut bytes = Vec::new();
        for _ in 0..=numbers.next(12) {
            let below = if numbers.next(8) == 0 { 70_000 } else { 130 };
            let length = numbers.next(below);
            let payload: Vec<u8> = (0..length).map(|_| numbers.next(256) as u8).collect();
            bytes.extend(frame(FIRST[numbers.next(10) as usize], &payload));
        }
        for _ in 0..numbers.next(4) {
            let at = numbers.next(bytes.len() as u64) as usize;
            bytes[at] = numbers.next(256) as u8;
        }
        if numbers.next(3) == 0 {
            bytes.truncate(numbers.next(bytes.len() as u64) as usize);
        }
        let sent = bytes.len();
        let rest = read_after_greeting(&format!("seed {seed}"), bytes).await;
        assert!(rest.len() <= sent, "seed {seed}: more than was sent");
    }
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_is_not_reached_shows_before_anybody_is_let_in_and_a_slow_one_does_not() {
    let closes = |code: u16, reason: &'static str| {
        opened(move |mut socket| async move {
            let frame = CloseFrame { code: CloseCode::from(code), reason: reason.into() };
            let _ = socket.close(Some(frame)).await;
        })
    };
    for (code, reason, told) in [
        (1011, "Unable to connect to target", "Unable to connect to target"),
        (1000, "", "code 1000"),
        (4000, "\u{202e}two\nlines", "two lines"),
    ] {
        let failed = closes(code, reason).await.0.unwrap_err();
        assert_eq!((failed.class, failed.code.as_str(), failed.message.as_str()), (FailureClass::Gone, CLOSED, told));
    }
    let start = Instant::now();
    let (slow, _) = opened(|mut socket| async move {
        tokio::time::sleep(GREETING_TIMEOUT + Duration::from_secs(5)).await;
        socket.send(binary(GREETING)).await.unwrap();
        futures::future::pending::<()>().await;
    })
    .await;
    let slow = slow.unwrap();
    assert_eq!(start.elapsed(), GREETING_TIMEOUT, "who waits for it longer is the client");
    assert_eq!(slow.next().await.unwrap().as_ref(), GREETING);
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_takes_nothing_slows_its_client_and_fills_no_memory() {
    let (go, went) = tokio::sync::oneshot::channel::<()>();
    let (tunnel, serving) = opened(|mut socket| async move {
        socket.send(binary(GREETING)).await.unwrap();
        went.await.unwrap();
        let mut heard = 0;
        while heard < 1 << 20 {
            if let Message::Binary(bytes) = socket.next().await.unwrap().unwrap() {
                heard += bytes.len();
            }
        }
        heard
    })
    .await;
    let tunnel = tunnel.unwrap();
    let all = vec![7; 1 << 20];
    let mut sending = std::pin::pin!(tunnel.send(&all));
    assert!(timeout(Duration::from_secs(600), sending.as_mut()).await.is_err(), "somebody took it all");
    go.send(()).unwrap();
    sending.await.unwrap();
    assert_eq!(serving.await.unwrap(), 1 << 20);
}

#[tokio::test(start_paused = true)]
async fn pongs_that_nobody_takes_push_no_byte_of_the_clients_out() {
    let (go, went) = tokio::sync::oneshot::channel::<()>();
    let (tunnel, serving) = asked_over(1 << 10, HOUR, |mut stream| async move {
        switched(&mut stream).await;
        stream.write_all(&frame(0x82, GREETING)).await.unwrap();
        stream.write_all(&frame(0x89, &[7; 125]).repeat(2000)).await.unwrap();
        went.await.unwrap();
        let mut socket = WebSocketStream::from_raw_socket(stream, Role::Server, None).await;
        let (mut heard, mut pongs) = (0, 0);
        while heard < SENT_BYTES_MAX {
            match socket.next().await.unwrap().unwrap() {
                Message::Binary(bytes) => heard += bytes.len(),
                Message::Pong(_) => pongs += 1,
                other => panic!("{other:?}"),
            }
        }
        pongs
    })
    .await;
    let tunnel = tunnel.unwrap();
    tunnel.next().await.unwrap();
    assert!(timeout(Duration::from_secs(60), tunnel.next()).await.is_err(), "pings are no bytes");
    let bytes = vec![7; SENT_BYTES_MAX];
    let mut sending = std::pin::pin!(tunnel.send(&bytes));
    assert!(timeout(Duration::from_secs(60), sending.as_mut()).await.is_err(), "nobody took it");
    go.send(()).unwrap();
    sending.await.unwrap();
    let pongs = serving.await.unwrap();
    assert!((1..2000).contains(&pongs), "{pongs} pongs");
}

#[tokio::test(start_paused = true)]
async fn a_dropped_tunnel_says_goodbye_and_waits_for_nobody() {
    let (tunnel, serving) = opened(|mut socket| async move {
        socket.send(binary(GREETING)).await.unwrap();
        let closed = socket.next().await;
        assert!(matches!(closed, Some(Ok(Message::Close(None)))), "{closed:?}");
        let after = socket.next().await;
        assert!(!matches!(after, Some(Ok(_))), "it is still there: {after:?}");
    })
    .await;
    drop(tunnel.unwrap());
    serving.await.unwrap();

    // One that takes nothing any more, in the middle of a frame.
    let (tunnel, serving) = asked_over(1 << 10, HOUR, |mut stream| async move {
        switched(&mut stream).await;
        stream.write_all(&frame(0x82, GREETING)).await.unwrap();
        tokio::time::sleep(Duration::from_secs(60)).await;
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap();
        rest.len()
    })
    .await;
    let tunnel = tunnel.unwrap();
    assert!(timeout(Duration::from_secs(1), tunnel.send(&[7; 100_000])).await.is_err());
    let start = Instant::now();
    drop(tunnel);
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert_eq!(serving.await.unwrap(), 1 << 10, "what the pipe held, and nothing after the cut");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_done_hears_what_was_under_way_and_no_endpoint_keeps_it() {
    let (tunnel, serving) = opened(|mut socket| async move {
        socket.send(binary(GREETING)).await.unwrap();
        assert!(matches!(socket.next().await, Some(Ok(Message::Close(_)))));
        // As a server does that has more to say: its close comes last.
        socket.get_mut().write_all(&frame(0x82, b"under way")).await.unwrap();
    })
    .await;
    let tunnel = tunnel.unwrap();
    tunnel.next().await.unwrap();
    let (read, ()) = tokio::join!(all(&tunnel), tunnel.end());
    assert_eq!(read, b"under way");
    serving.await.unwrap();

    let (tunnel, _) = opened(|mut socket| async move {
        socket.send(binary(GREETING)).await.unwrap();
        futures::future::pending::<()>().await;
    })
    .await;
    let (tunnel, start) = (tunnel.unwrap(), Instant::now());
    tunnel.end().await;
    assert_eq!(start.elapsed(), CLOSE_TIMEOUT);
    assert!(tunnel.send(b"late").await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_knows_when_its_time_is_over() {
    let greets = |lasts| {
        asked_over(1 << 12, lasts, |stream| async move {
            let mut socket = accepted(stream).await;
            socket.send(binary(GREETING)).await.unwrap();
            futures::future::pending::<()>().await;
        })
    };
    let tunnel = greets(Duration::from_secs(119)).await.0.unwrap();
    assert!(!tunnel.is_over() && !tunnel.is_whole());
    tokio::time::sleep(Duration::from_secs(117)).await;
    assert!(!tunnel.is_over());
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(tunnel.is_over());
    assert!(greets(HOUR).await.0.unwrap().is_whole());
}
