use super::*;
use crate::metric::{MetricDef, Samples};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc;
use std::time::Duration;

const GAUGE: MetricDef = MetricDef::gauge("test_level", "A level.", &[]);

/// A server on a free port, stopped when dropped.
struct Running {
    address: SocketAddr,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Running {
    fn start(handler: Handler, requests_max: usize) -> Self {
        Self::run(Server::new(handler, requests_max))
    }

    fn run(server: Server) -> Self {
        let listener = bind("127.0.0.1:0", "--test").unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let until = async {
                let _ = stopped.await;
            };
            runtime.block_on(server.serve(listener, until)).unwrap();
        });
        Self { address, stop: Some(stop), thread: Some(thread) }
    }

    fn send(&self, request: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        stream
    }

    fn ask(&self, request: &str) -> String {
        read(self.send(request))
    }

    fn get(&self, path: &str, headers: &str) -> String {
        self.ask(&format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.stop.take().unwrap().send(());
        self.thread.take().unwrap().join().unwrap();
    }
}

fn read(mut stream: TcpStream) -> String {
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn observability(ready: Result<(), String>) -> Handler {
    let metrics = |_: &Request| {
        let mut samples = Samples::default();
        samples.count(&GAUGE, &[], 7);
        samples
    };
    Observability {
        title: "test",
        metrics: Box::new(metrics),
        probes: Box::new(|| serde_json::json!([{"name": "p"}])),
        ready: Box::new(move || ready.clone()),
    }
    .handler()
}

#[test]
fn serves_every_endpoint() {
    let server = Running::start(observability(Err("still loading".into())), 4);
    for (path, status, content) in [
        ("/metrics", "200 OK", "test_level 7\n"),
        ("/metrics?x=1", "200 OK", "test_level 7\n"),
        ("/probes", "200 OK", "[{\"name\":\"p\"}]"),
        ("/-/healthy", "200 OK", "test is healthy."),
        ("/-/ready", "503 Service Unavailable", "test is not ready: still loading"),
        ("/", "200 OK", "<a href=\"/metrics\">"),
        ("/nothing", "404 Not Found", "Not found."),
    ] {
        let answer = server.get(path, "");
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")) && answer.contains(content),
            "{path}: {answer}"
        );
    }
    assert!(Running::start(observability(Ok(())), 4).get("/-/ready", "").starts_with("HTTP/1.1 200"));
}

#[test]
fn negotiates_the_format_of_the_metrics() {
    let server = Running::start(observability(Ok(())), 4);
    let text = server.get("/metrics", "");
    assert!(text.contains("content-type: text/plain; version=0.0.4") && !text.contains("# EOF"), "{text}");
    let open =
        server.get("/metrics", "Accept: application/openmetrics-text;version=1.0.0,text/plain;q=0.5\r\n");
    assert!(open.contains("content-type: application/openmetrics-text; version=1.0.0"), "{open}");
    assert!(open.ends_with("# EOF\n"), "{open}");
    let malformed = server.get("/metrics", "Accept: application/openmetrics-text;q=high\r\n");
    assert!(malformed.contains("text/plain; version=0.0.4"), "{malformed}");
}

#[test]
fn head_gives_the_headers_of_get_and_no_body() {
    let server = Running::start(observability(Ok(())), 4);
    let length = |answer: &str| {
        let line = answer.lines().find_map(|line| line.strip_prefix("content-length: "));
        line.unwrap().trim().parse::<usize>().unwrap()
    };
    let get = server.get("/metrics", "");
    let head = server.ask("HEAD /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert_eq!(length(&get), length(&head));
    assert!(head.ends_with("\r\n\r\n"), "{head}");
}

#[test]
fn refuses_what_is_neither_get_nor_head() {
    let server = Running::start(observability(Ok(())), 4);
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "BREW"] {
        let request = format!(
            "{method} /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
        let answer = server.ask(&request);
        assert!(answer.starts_with("HTTP/1.1 405") && answer.contains("allow: GET, HEAD"), "{answer}");
    }
}

#[test]
fn garbage_gets_an_answer_and_leaves_the_server_alive() {
    let server = Running::start(observability(Ok(())), 4);
    assert!(server.ask("\x16\x03\x01 not http\r\n\r\n").starts_with("HTTP/1.1 400"));
    let long = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(64 << 10));
    let answer = server.ask(&long);
    assert!(answer.starts_with("HTTP/1.1 4"), "{answer}");
    assert!(server.get("/-/healthy", "").starts_with("HTTP/1.1 200"));
}

#[test]
fn answers_503_beyond_the_bound_and_serves_again_after() {
    let (entered, has_entered) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    let released = std::sync::Mutex::new(released);
    let handler: Handler = Arc::new(move |_| {
        entered.send(()).unwrap();
        released.lock().unwrap().recv().unwrap();
        text(200, "done")
    });
    let server = Running::start(handler, 1);
    let first = server.send("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    has_entered.recv_timeout(Duration::from_secs(10)).unwrap();
    assert!(server.get("/", "").starts_with("HTTP/1.1 503"));
    release.send(()).unwrap();
    assert!(read(first).ends_with("done"));
    release.send(()).unwrap();
    assert!(server.get("/", "").ends_with("done"));
}

#[test]
fn finishes_an_answer_that_is_under_way_when_it_stops() {
    let (entered, has_entered) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    let released = std::sync::Mutex::new(released);
    let handler: Handler = Arc::new(move |_| {
        entered.send(()).unwrap();
        released.lock().unwrap().recv().unwrap();
        text(200, "done")
    });
    let mut server = Running::start(handler, 1);
    let stream = server.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    has_entered.recv_timeout(Duration::from_secs(10)).unwrap();
    let stop = server.stop.replace(tokio::sync::oneshot::channel().0);
    stop.unwrap().send(()).unwrap();
    release.send(()).unwrap();
    assert!(read(stream).ends_with("done"));
}

#[test]
fn cuts_off_a_client_that_does_not_take_its_answer() {
    let handler: Handler = Arc::new(|_| text(200, "x".repeat(64 << 20)));
    let server = Running::run(Server::new(handler, 1).with_write_timeout(Duration::from_millis(300)));
    let stream = server.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    // The kernel tells a client with a shut window nothing, so the server's end is looked up.
    let ends = [server.address, stream.local_addr().unwrap()];
    let ends = ends.map(|end| format!("{:08X}:{:04X}", 0x0100_007f, end.port())).join(" ");
    let start = std::time::Instant::now();
    let is_open = || std::fs::read_to_string("/proc/net/tcp").unwrap().contains(&ends);
    assert!(is_open(), "{ends} at first");
    while is_open() {
        assert!(start.elapsed() < Duration::from_secs(30), "still connected");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_panicking_handler_is_an_error_of_one_request() {
    let handler: Handler = Arc::new(|request| {
        assert!(request.path != "/bad", "on purpose");
        text(200, "fine")
    });
    let server = Running::start(handler, 1);
    assert!(server.get("/bad", "").starts_with("HTTP/1.1 500"));
    assert!(server.get("/good", "").ends_with("fine"));
}

#[test]
fn decodes_paths_and_queries() {
    let handler: Handler = Arc::new(|request| {
        let names = request.values("collect[]").collect::<Vec<_>>().join("|");
        text(200, format!("{} {names}", request.path))
    });
    let server = Running::start(handler, 4);
    let answer = server.get("/a%20b?collect%5B%5D=one&collect[]=t+w%6F&x&&collect[]=%zz", "");
    assert!(answer.ends_with("/a b one|t wo|%zz"), "{answer}");
}

#[test]
fn an_address_that_cannot_be_used_says_why_and_names_the_flag() {
    for address in ["", ":", ":x", ":99999", "nonsense", "127.0.0.1", "300.1.1.1:1"] {
        let error = bind(address, "--web.listen-address").unwrap_err();
        assert!(matches!(error, HttpError::Address { .. }), "{address}: {error}");
        assert!(error.to_string().contains("--web.listen-address"), "{error}");
    }
    let first = bind("127.0.0.1:0", "--test").unwrap();
    let address = first.local_addr().unwrap().to_string();
    let error = bind(&address, "--web.listen-address").unwrap_err();
    assert!(matches!(error, HttpError::Taken { .. }), "{error}");
    let expected = format!(
        "cannot listen on {address}: another process has this port; stop it, or choose another with \
         --web.listen-address"
    );
    assert_eq!(error.to_string(), expected);
}

const POSTS: Posts = Posts { path: "/in", content_type: "application/x-ndjson", bytes_max: 10 };

/// A server that says what was posted.
fn echo() -> Running {
    let handler: Handler = Arc::new(|request| {
        text(200, format!("{} {}", request.method, String::from_utf8_lossy(&request.body)))
    });
    Running::run(Server::new(handler, 40).taking(POSTS))
}

fn post(path: &str, kind: &str, headers: &str, body: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: {kind}\r\n{headers}\r\n{body}"
    )
}

#[test]
fn takes_a_body_of_the_right_kind_and_size_at_its_path_alone() {
    let server = echo();
    let kind = POSTS.content_type;
    for (path, kind, headers, body, wanted) in [
        ("/in", kind, "Content-Length: 5\r\n", "hello", "200 OK"),
        ("/in", "Application/X-NDJSON; charset=utf-8", "Content-Length: 5\r\n", "hello", "200 OK"),
        ("/in", kind, "Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n0\r\n\r\n", "200 OK"),
        ("/in", "text/plain", "Content-Length: 5\r\n", "hello", "415 Unsupported"),
        ("/in", kind, "Content-Length: 11\r\n", "hello world", "413 Payload"),
        ("/in", kind, "Transfer-Encoding: chunked\r\n", "b\r\nhello world\r\n0\r\n\r\n", "413 Payload"),
        ("/in", kind, "Transfer-Encoding: chunked\r\n", "x\r\nhello\r\n", "400 Bad"),
        ("/out", kind, "Content-Length: 5\r\n", "hello", "405 Method"),
    ] {
        let answer = server.ask(&post(path, kind, headers, body));
        assert!(answer.starts_with(&format!("HTTP/1.1 {wanted}")), "{path} {kind} {headers} {answer}");
        assert_eq!(answer.ends_with("\r\n\r\nPOST hello"), wanted == "200 OK", "{answer}");
    }
    assert!(server.get("/in", "").ends_with("\r\n\r\nGET "));
    let put = "PUT /in HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
    assert!(server.ask(put).starts_with("HTTP/1.1 405"));
}

#[test]
fn more_bodies_than_there_is_room_for_are_refused_and_those_that_do_not_come_are_not_waited_for() {
    let server = echo();
    let head = post("/in", POSTS.content_type, "Content-Length: 5\r\n", "");
    let waiting: Vec<_> = (0..4).map(|_| server.send(&head)).collect();
    let whole = format!("{head}hello");
    let deadline = std::time::Instant::now() + Duration::from_secs(8);
    while !server.ask(&whole).starts_with("HTTP/1.1 503") {
        assert!(std::time::Instant::now() < deadline, "the four are not read");
    }
    assert!(server.get("/", "").starts_with("HTTP/1.1 200"), "who posts nothing is not concerned");
    for stream in waiting {
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        assert!(read(stream).starts_with("HTTP/1.1 408"));
    }
    assert!(server.ask(&whole).ends_with("POST hello"));
}
