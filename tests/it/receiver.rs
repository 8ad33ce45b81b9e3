//! A receiver of webhooks: takes each delivery down and answers as a test says.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::server::eventually;

/// A request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Delivery {
    pub(crate) at: Instant,
    pub(crate) path: String,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

/// An answer.
#[derive(Debug, Clone)]
pub(crate) enum Reply {
    /// A status, with header lines.
    Status(u16, &'static [(&'static str, &'static str)]),
    /// A status and a place.
    Redirect(String),
    /// None for so long, or until the other side closes.
    Silence(Duration),
}

/// A receiver that runs until it is dropped.
#[derive(Debug)]
pub(crate) struct Receiver {
    pub(crate) address: SocketAddr,
    taken: Arc<Mutex<Vec<Delivery>>>,
    stop: Arc<AtomicBool>,
}

pub(crate) const OK: Reply = Reply::Status(204, &[]);

impl Receiver {
    /// Answers everything with success.
    pub(crate) fn start() -> Self {
        Self::answering(|_, _| OK)
    }

    /// Answers the n-th delivery, counted from 0, as `reply` says.
    pub(crate) fn answering(
        reply: impl Fn(usize, &Delivery) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::at(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), reply)
    }

    /// Listens where a test says.
    pub(crate) fn at(
        address: SocketAddr,
        reply: impl Fn(usize, &Delivery) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let (taken, stop) = (Arc::<Mutex<Vec<Delivery>>>::default(), Arc::default());
        let (reply, ended) = (Arc::new(reply), Arc::clone(&stop));
        let kept = Arc::clone(&taken);
        thread::spawn(move || {
            for stream in listener.incoming() {
                if AtomicBool::load(&ended, Relaxed) {
                    return;
                }
                let (Ok(stream), reply, taken) = (stream, Arc::clone(&reply), Arc::clone(&kept))
                else {
                    continue;
                };
                thread::spawn(move || serve(&stream, &taken, &*reply));
            }
        });
        Self { address, taken, stop }
    }

    /// The URL of a path.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Everything that came so far.
    pub(crate) fn taken(&self) -> Vec<Delivery> {
        self.taken.lock().unwrap().clone()
    }

    /// Waits until so many deliveries came.
    pub(crate) fn wait_for(&self, count: usize) -> Vec<Delivery> {
        eventually(&format!("{count} deliveries"), || {
            Some(self.taken()).filter(|taken| taken.len() >= count)
        })
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        let _ = TcpStream::connect(self.address); // wakes it
    }
}

impl Delivery {
    /// The first header of this name.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str())
    }

    /// The event.
    pub(crate) fn event(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }

    /// Its id.
    pub(crate) fn id(&self) -> String {
        self.event()["id"].as_str().unwrap().to_owned()
    }
}

fn serve(
    stream: &TcpStream,
    taken: &Mutex<Vec<Delivery>>,
    reply: &dyn Fn(usize, &Delivery) -> Reply,
) {
    let _ = stream.set_read_timeout(Some(Duration::from_secs(20)));
    let mut reader = BufReader::new(stream);
    let Some(delivery) = read(&mut reader) else { return };
    let reply = {
        let mut taken = taken.lock().unwrap();
        let reply = reply(taken.len(), &delivery);
        taken.push(delivery);
        reply
    };
    let text = match reply {
        Reply::Status(status, headers) => {
            let line =
                |text: String, (name, value): &(&str, &str)| text + &format!("{name}: {value}\r\n");
            let headers = headers.iter().fold(String::new(), line);
            format!("HTTP/1.1 {status} Said\r\n{headers}content-length: 0\r\n\r\n")
        }
        Reply::Redirect(to) => {
            format!("HTTP/1.1 307 Said\r\nlocation: {to}\r\ncontent-length: 0\r\n\r\n")
        }
        Reply::Silence(longest) => {
            let _ = stream.set_read_timeout(Some(longest));
            let _ = reader.read(&mut [0]);
            return;
        }
    };
    let _ = (&*stream).write_all(text.as_bytes());
}

fn read(reader: &mut BufReader<&TcpStream>) -> Option<Delivery> {
    let mut line = || {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|length| *length > 0)?;
        Some(line.trim_end().to_owned())
    };
    let path = line()?.split(' ').nth(1)?.to_owned();
    let mut headers = Vec::new();
    loop {
        let line = line()?;
        let Some((name, value)) = line.split_once(": ") else { break };
        headers.push((name.to_ascii_lowercase(), value.to_owned()));
    }
    let length = headers.iter().find(|(name, _)| name == "content-length")?;
    let mut body = vec![0; length.1.parse().ok()?];
    reader.read_exact(&mut body).ok()?;
    let body = String::from_utf8(body).ok()?;
    Some(Delivery { at: Instant::now(), path, headers, body })
}
