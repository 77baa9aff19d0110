//! A proxy before a real server that spoils chosen requests: for what a server cannot be made to do when asked.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// What becomes of a request.
#[derive(Debug, Clone)]
pub enum Fault {
    /// Nothing: the server answers.
    Pass,
    /// The connection is closed before the request was read to its end.
    Reset,
    /// The server does it, but its answer never arrives.
    LoseAnswer,
    /// The server does it; half of its answer arrives.
    CutAnswer,
    /// The answer comes after so long.
    Delay(Duration),
    /// The request goes on without this header.
    Strip(&'static str),
    /// This answer, without asking the server.
    Answer(u16, &'static str),
}

/// The request's number among those of its kind (bulk requests are numbered by themselves), its method and its path.
pub struct Asked<'a> {
    pub bulk: Option<usize>,
    pub method: &'a str,
    pub path: &'a str,
}

/// Listens until dropped.
pub struct Proxy {
    port: u16,
    stop: Arc<AtomicBool>,
    /// How many requests were spoilt.
    pub spoilt: Arc<AtomicUsize>,
}

impl Proxy {
    /// A proxy before the server at `port`.
    pub fn before(server: u16, fault: impl Fn(&Asked) -> Fault + Send + Sync + 'static) -> Proxy {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let (stop, spoilt) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (fault, bulks) = (Arc::new(fault), Arc::new(AtomicUsize::new(0)));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&spoilt));
        std::thread::spawn(move || {
            for client in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    break;
                }
                let (fault, bulks, counted) = (Arc::clone(&fault), Arc::clone(&bulks), Arc::clone(&counted));
                std::thread::spawn(move || {
                    // A client that went away is its own affair.
                    let _ = client.and_then(|client| serve(client, server, fault.as_ref(), &bulks, &counted));
                });
            }
        });
        Proxy { port, stop, spoilt }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn spoilt(&self) -> usize {
        self.spoilt.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // The listener looks at the flag once somebody comes.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

/// One request for each connection.
fn serve(
    mut client: TcpStream,
    server: u16,
    fault: &dyn Fn(&Asked) -> Fault,
    bulks: &AtomicUsize,
    spoilt: &AtomicUsize,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let (mut first, mut headers, mut length) = (String::new(), String::new(), 0);
    reader.read_line(&mut first)?;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line == "\r\n" {
            break;
        }
        let lower = line.to_ascii_lowercase();
        if let Some(value) = lower.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        }
        if !lower.starts_with("connection:") && !lower.starts_with("accept-encoding:") {
            headers += &line;
        }
    }
    let mut words = first.split(' ');
    let (method, path) = (words.next().unwrap_or(""), words.next().unwrap_or("").trim());
    let bulk = path.contains("/_bulk").then(|| bulks.fetch_add(1, Ordering::SeqCst));
    let fault = fault(&Asked { bulk, method, path });
    if !matches!(fault, Fault::Pass) {
        spoilt.fetch_add(1, Ordering::SeqCst);
    }
    if matches!(fault, Fault::Reset) {
        let mut half = vec![0; length / 2];
        reader.read_exact(&mut half)?;
        // Closed with unread bytes, a socket is reset, not ended.
        return Ok(());
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    if let Fault::Answer(status, text) = fault {
        let length = text.len();
        return write!(
            client,
            "HTTP/1.1 {status} Spoilt\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{text}"
        );
    }
    if let Fault::Strip(header) = fault {
        let others =
            headers.split_inclusive('\n').filter(|line| !line.to_ascii_lowercase().starts_with(header));
        headers = others.collect();
    }
    let mut upstream = TcpStream::connect(("127.0.0.1", server))?;
    write!(upstream, "{first}{headers}Connection: close\r\n\r\n")?;
    upstream.write_all(&body)?;
    let mut answer = Vec::new();
    upstream.read_to_end(&mut answer)?;
    match fault {
        Fault::LoseAnswer => return Ok(()),
        Fault::CutAnswer => answer.truncate(answer.len() / 2),
        Fault::Delay(time) => std::thread::sleep(time),
        _ => {}
    }
    // Else the client might send its next request on a connection that is about to be closed.
    let headers = answer.windows(2).position(|end| end == b"\r\n").map_or(0, |end| end + 2);
    client.write_all(&answer[..headers])?;
    client.write_all(b"Connection: close\r\n")?;
    client.write_all(&answer[headers..])
}
