//! Over real connections; each condition is forced: a full house, a silent client, one that does not read.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;

use super::*;
use crate::Counter;
use crate::metrics::{Kind, Metric};

static SCRAPES: Metric<1> = Metric::new("test_scrapes_total", Kind::Counter, ["text"], "Scrapes.");

/// So many lines of metrics.
struct Fake {
    lines: usize,
    made: Counter,
}

impl Fake {
    fn new(lines: usize) -> Arc<Self> {
        Arc::new(Self { lines, made: Counter::default() })
    }
}

impl Pages for Fake {
    fn metrics(&self) -> Exposition {
        self.made.count();
        let mut exposition = Exposition::default();
        let mut scrapes = exposition.family(&SCRAPES);
        (0..self.lines).for_each(|_| scrapes.add(["x"], 1u64));
        exposition
    }

    fn probe(&self, probe: Probe) -> Health {
        match probe {
            Probe::Ready => Err("the first scan is not complete".into()),
            Probe::Live | Probe::Startup => Ok("running".into()),
        }
    }
}

struct Served {
    address: SocketAddr,
    counters: Arc<HttpCounters>,
    pages: Arc<Fake>,
    _server: HttpServer,
}

fn serve(limits: HttpLimits, lines: usize) -> Served {
    let counters = Arc::<HttpCounters>::default();
    let pages = Fake::new(lines);
    let shown = Arc::clone(&pages);
    let server = HttpServer::start(
        "http.listen",
        &"127.0.0.1:0".parse().unwrap(),
        limits,
        shown,
        Arc::clone(&counters),
    )
    .unwrap();
    let HttpAddress::Tcp(address) = *server.address() else { panic!("{:?}", server.address()) };
    Served { address, counters, pages, _server: server }
}

fn ask(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// A connection is counted right after its end, which the client may see first.
fn until(mut is_so: impl FnMut() -> bool) {
    let began = std::time::Instant::now();
    while !is_so() {
        assert!(began.elapsed() < Duration::from_secs(60));
        std::thread::yield_now();
    }
}

const LIMITS: HttpLimits = HttpLimits::with_connections(4);

#[tokio::test]
async fn an_address_that_is_taken_is_named_and_served_once_it_can_be_had() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let wanted = HttpAddress::Tcp(address);
    let server = HttpServer::start("http.listen", &wanted, LIMITS, Fake::new(1), Arc::default()).unwrap();
    let (setting, error) = server.binding().problem().unwrap();
    assert_eq!(setting, "http.listen");
    assert!(error.contains(&format!("cannot listen on {address} for HTTP: ")), "{error}");
    drop(taken);
    until(|| server.binding().problem().is_none());
    assert!(ask(address, "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").starts_with("HTTP/1.1 200 "));
}

#[test]
fn pages_other_paths_and_other_methods() {
    let Served { address, counters, .. } = &serve(LIMITS, 1);
    let address = *address;
    let get = |path: &str| ask(address, &format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"));
    let live = get("/livez");
    assert!(live.starts_with("HTTP/1.1 200 ") && live.ends_with("\r\n\r\nok: running\n"), "{live}");
    let ready = get("/readyz?verbose");
    assert!(ready.starts_with("HTTP/1.1 503 "), "{ready}");
    assert!(ready.ends_with("failed: the first scan is not complete\n"), "{ready}");
    let metrics = get("/metrics");
    assert!(metrics.contains("content-type: text/plain; version=0.0.4"), "{metrics}");
    assert!(
        metrics.contains("test_scrapes_total{text=\"x\"} 1\n") && !metrics.contains("# EOF"),
        "{metrics}"
    );
    let open = "GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: application/openmetrics-text\r\n\r\n";
    assert!(ask(address, open).ends_with("# EOF\n"));
    assert!(get("/").starts_with("HTTP/1.1 404 "));
    assert!(get("/metrics/../livez").starts_with("HTTP/1.1 404 "));
    let post = ask(address, "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n");
    assert!(post.starts_with("HTTP/1.1 405 ") && post.contains("allow: GET, HEAD\r\n"), "{post}");
    let head = ask(address, "HEAD /startupz HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200 ") && head.ends_with("\r\n\r\n"), "{head}");
    assert_eq!((counters.requests.get(), counters.requests_failed.get()), (8, 4));
}

#[test]
fn what_is_no_request_ends_its_connection_alone() {
    let Served { address, counters, .. } = &serve(LIMITS, 1);
    let address = *address;
    let headers = "x: y\r\n".repeat(HEADERS + 1);
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(HEAD_BYTES));
    for request in ["PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "\0\0\0\r\n\r\n", &long] {
        // What is left unread may come back as a reset.
        let mut stream = TcpStream::connect(address).unwrap();
        let _ = stream.write_all(request.as_bytes());
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(!answer.starts_with(b"HTTP/1.1 200"), "{request}");
    }
    let many = ask(address, &format!("GET /livez HTTP/1.1\r\n{headers}\r\n"));
    assert!(many.starts_with("HTTP/1.1 431 "), "{many}");
    assert!(ask(address, "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").starts_with("HTTP/1.1 200 "));
    until(|| counters.connections_broken.get() == 4);
}

#[test]
fn those_that_hold_connections_open_keep_nobody_out() {
    let Served { address, counters, .. } = &serve(LIMITS, 1);
    let address = *address;
    let mut silent: Vec<_> = (0..4).map(|_| TcpStream::connect(address).unwrap()).collect();
    assert!(ask(address, "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").starts_with("HTTP/1.1 200 "));
    assert_eq!(counters.connections_displaced.get(), 1);
    // The oldest was closed for it.
    assert_eq!(silent[0].read(&mut [0]).unwrap(), 0);
}

#[test]
fn who_has_most_connections_gives_way_and_of_those_the_oldest() {
    let client = |last: u8| Some(IpAddr::from([10, 0, 0, last]));
    let open = |clients: &[u8]| -> Vec<Open> {
        let open = |(index, of): (usize, &u8)| Open {
            number: index as u64,
            client: client(*of),
            _displace: oneshot::channel().0,
        };
        clients.iter().enumerate().map(open).collect()
    };
    assert_eq!(displaced(&open(&[1, 2, 2, 3]), client(4)), Some(1));
    assert_eq!(displaced(&open(&[1, 2, 3, 4]), client(5)), Some(0), "of several, the oldest");
    assert_eq!(displaced(&open(&[1, 2, 3, 4]), client(3)), Some(2), "its own");
    assert_eq!(displaced(&open(&[1, 1, 2, 2]), client(2)), Some(2));
    assert_eq!(displaced(&[], client(1)), None);
}

#[test]
fn scrapes_that_come_at_a_time_share_a_text() {
    let Served { address, pages, .. } = &serve(LIMITS, 1);
    let began = std::time::Instant::now();
    let scrapes = 200;
    for _ in 0..scrapes {
        assert!(ask(*address, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").starts_with("HTTP/1.1 200 "));
    }
    // One a second, however long that took.
    assert!(pages.made.get() <= 1 + began.elapsed().as_secs(), "{}", pages.made.get());
    assert!(ask(*address, "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").contains("ok: running"));
}

#[test]
fn a_silent_client_and_one_that_does_not_read_are_closed_in_time() {
    let limits = HttpLimits { head: Duration::from_millis(20), ..LIMITS };
    let Served { address, counters, .. } = &serve(limits, 1);
    let address = *address;
    let mut silent = TcpStream::connect(address).unwrap();
    silent.write_all(b"GET /livez HTTP/1.1\r\n").unwrap();
    let _ = silent.read(&mut [0]);
    until(|| counters.connections_timed_out.get() == 1);

    // Long enough for the short requests, also on a busy machine.
    let limits = HttpLimits { whole: Duration::from_secs(2), ..LIMITS };
    // More than what the sockets' buffers take.
    let Served { address, counters, .. } = &serve(limits, 1 << 20);
    let address = *address;
    let mut slow = TcpStream::connect(address).unwrap();
    slow.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    until(|| {
        assert!(ask(address, "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").starts_with("HTTP/1.1 200 "));
        counters.connections_timed_out.get() == 1
    });
}

#[test]
fn a_unix_socket_is_served_and_removed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("http.sock");
    let address = HttpAddress::Unix(path.clone());
    let server = HttpServer::start("http.listen", &address, LIMITS, Fake::new(1), Arc::default()).unwrap();
    let mut stream = UnixStream::connect(&path).unwrap();
    stream.write_all(b"GET /livez HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("ok: running\n"), "{answer}");
    drop(server);
    assert!(!path.exists());
}
