//! What the data plane's listener may be told, with a bound for everything a client can make grow.
//!
//! Every default stands here and nowhere else; `config` fills these from file, environment and flags.

use std::{
    net::{Ipv4Addr, SocketAddr},
    num::{NonZeroU32, NonZeroUsize},
    time::Duration,
};

use super::AccessSettings;

/// The data plane's listener: where it listens, on how many workers, how it stops.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Where HTTP/1.1 and HTTP/2 are served; port 0 takes any free one.
    pub http: SocketAddr,
    /// Threads that serve connections. `None`: the CPU budget of the process (cgroup quota and affinity).
    pub workers: Option<NonZeroUsize>,
    /// After SIGTERM: how long connections are still accepted while readiness already fails. Below `grace`.
    pub drain_delay: Duration,
    /// After SIGTERM: when whatever still runs is cut off, counted from the signal.
    pub grace: Duration,
    /// True if web pages of other sites may ask what changes something or costs time.
    pub web_pages: bool,
    /// The share of requests without a parent that begin a trace, 0 to 1.
    pub traced_share: f64,
    /// Where requests are told.
    pub access: AccessSettings,
    /// What one client, one connection and one request may use.
    pub limits: Limits,
}

/// Bounds on what clients send; each is refused with a clear answer, never by a crash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Largest request body in bytes, after decompression too.
    pub body_bytes_max: usize,
    /// Slowest body in bytes per second, averaged, once `body_grace` has passed.
    pub body_bytes_per_second_min: NonZeroU32,
    /// How long a body may be slower than `body_bytes_per_second_min`.
    pub body_grace: Duration,
    /// How long a request's head may take to arrive.
    pub header_timeout: Duration,
    /// Most header lines of one request.
    pub headers_max: usize,
    /// Largest header block of one request in bytes.
    pub header_bytes_max: usize,
    /// Longest request target in bytes.
    pub uri_bytes_max: usize,
    /// Longest time that a connection stays open without a request.
    pub idle_timeout: Duration,
    /// How long a client may take to accept any byte of an answer.
    pub write_timeout: Duration,
    /// How long a connection is still read from after its last answer, and how long one must have been quiet to be
    /// closed while the process stops.
    pub linger: Duration,
    /// Most connections at once. `None`: half of the file-descriptor limit.
    pub connections_max: Option<NonZeroUsize>,
    /// Most connections at once from one address. `None`: no cap of its own.
    pub connections_per_ip_max: Option<NonZeroUsize>,
    /// Most bytes of request bodies and unread answers held at once, all connections together; at least
    /// `body_bytes_max`. `None`: a quarter of the memory that the process may use, 1 GiB at most.
    pub in_flight_bytes_max: Option<NonZeroUsize>,
    /// Most concurrent streams of one HTTP/2 connection.
    pub http2_streams_max: NonZeroU32,
    /// Deepest nesting of a JSON body.
    pub json_depth_max: usize,
    /// Most input tensors of one request.
    pub inputs_max: usize,
    /// Most outputs that one request may ask for.
    pub outputs_max: usize,
    /// Most parameters of one request, or of one of its tensors.
    pub parameters_max: usize,
    /// Smallest answer in bytes that is compressed for who asks for it.
    pub compress_bytes_min: usize,
    /// Longest name of a tensor or parameter in bytes.
    pub name_bytes_max: usize,
    /// How many times its compressed size a body may grow to.
    pub inflate_ratio_max: NonZeroU32,
    /// Most members of a gzip body.
    pub gzip_members_max: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            http: SocketAddr::from((Ipv4Addr::LOCALHOST, 8000)),
            workers: None,
            // Load balancers must see readiness fail before connections are refused.
            drain_delay: Duration::from_secs(1),
            // Orchestrators kill after 30 s; 5 s remain to write down how it ended.
            grace: Duration::from_secs(25),
            // Any page that a browser on this machine shows can reach loopback.
            web_pages: false,
            // Whoever asks with a trace decides for it.
            traced_share: 0.0,
            access: AccessSettings::default(),
            limits: Limits::default(),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        const KIB: usize = 1024;
        const MIB: usize = 1024 * KIB;
        Self {
            body_bytes_max: 64 * MIB,
            body_bytes_per_second_min: nonzero(1024),
            body_grace: Duration::from_secs(10),
            header_timeout: Duration::from_secs(10),
            headers_max: 64,
            header_bytes_max: 32 * KIB,
            uri_bytes_max: 8 * KIB,
            idle_timeout: Duration::from_mins(1),
            write_timeout: Duration::from_secs(30),
            linger: Duration::from_secs(1),
            connections_max: None,
            connections_per_ip_max: None,
            in_flight_bytes_max: None,
            http2_streams_max: nonzero(100),
            json_depth_max: 64,
            inputs_max: 256,
            outputs_max: 256,
            parameters_max: 128,
            compress_bytes_min: KIB,
            name_bytes_max: 256,
            inflate_ratio_max: nonzero(100),
            gzip_members_max: 1024,
        }
    }
}

const fn nonzero(number: u32) -> NonZeroU32 {
    NonZeroU32::new(number).expect("the defaults above are not zero")
}
