#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::*;

struct Server {
    address: std::net::SocketAddr,
    readiness: Arc<Readiness>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn start() -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let readiness = Arc::new(Readiness::default());
    let admin = Admin {
        metrics: Arc::new(Metrics::new()),
        readiness: Arc::clone(&readiness),
        liveness: Arc::default(),
    };
    Server { address, readiness, task: tokio::spawn(admin.serve(listener)) }
}

async fn ask(server: &Server, request: &str) -> String {
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await.unwrap().unwrap();
    String::from_utf8(answer).unwrap()
}

async fn get(server: &Server, path: &str) -> String {
    ask(server, &format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n")).await
}

#[tokio::test]
async fn readiness_tells_what_is_missing() {
    let server = start().await;
    server.readiness.block("sockets", "not bound yet");
    server.readiness.degrade("mode", "the driver writes: no hostPath of the pods folder");
    for path in ["/readyz", "/health/ready"] {
        let answer = get(&server, path).await;
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(answer.ends_with(
            "not ready\nmode: degraded: the driver writes: no hostPath of the pods folder\n\
             sockets: blocked: not bound yet\n"
        ));
    }
    server.readiness.clear("sockets");
    let answer = get(&server, "/readyz").await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("ready\nmode: degraded"), "{answer}");
    assert!(get(&server, "/livez").await.starts_with("HTTP/1.1 200 "));
    assert!(get(&server, "/metrics").await.ends_with("# EOF\n"));
    assert!(get(&server, "/quitquitquit").await.starts_with("HTTP/1.1 404 "));
    let head = ask(&server, "HEAD /livez HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 200 ") && head.ends_with("\r\n\r\n"), "{head}");
}

#[tokio::test]
async fn no_tcp_mutation() {
    let server = start().await;
    for method in ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE", "QUIT"] {
        for path in ["/livez", "/readyz", "/health/ready", "/metrics", "/quitquitquit", "/agent/v1/quit"] {
            let target = if method == "CONNECT" { "x:1" } else { path };
            let request = format!("{method} {target} HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\nx");
            let answer = ask(&server, &request).await;
            assert!(answer.starts_with("HTTP/1.1 405 ") && answer.contains("allow: GET, HEAD"), "{answer}");
        }
    }
}

#[tokio::test]
async fn slow_and_large_clients_do_not_keep_others_out() {
    let server = start().await;
    let mut idle = Vec::new();
    for _ in 0..MAX_CONNECTIONS * 2 {
        idle.push(TcpStream::connect(server.address).await.unwrap());
    }
    let head = format!("GET /livez HTTP/1.1\r\nhost: {}\r\n\r\n", "x".repeat(2 * MAX_HEAD));
    // Places come free when the idle ones are cut, without a byte sent.
    let answered = async {
        loop {
            let mut stream = TcpStream::connect(server.address).await.unwrap();
            // Refused by closing, perhaps with a reset: then we come again, as a probe does.
            let mut answer = Vec::new();
            let asked = stream.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await;
            if asked.is_ok()
                && stream.read_to_end(&mut answer).await.is_ok()
                && answer.starts_with(b"HTTP/1.1 200")
            {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(MAX_LIFE * 2, answered).await.unwrap();
    assert!(ask(&server, &head).await.starts_with("HTTP/1.1 431 "));
}
