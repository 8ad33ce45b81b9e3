//! The sockets of those who wait for a run, by their descriptors: whether they are gone, and telling them to go.
//!
//! The two system calls stand here because a borrowed descriptor is `unsafe` in Rust; nothing is read from or written
//! to.

use std::os::fd::{BorrowedFd, RawFd};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::Shutdown,
};

/// True if the peer of a socket has closed it or its writing side; false where the system does not tell.
///
/// The descriptor must be open; of another kind of file, the answer means nothing.
pub fn peer_is_gone(socket: RawFd) -> bool {
    let Some(socket) = borrowed(socket) else { return false };
    let gone = PollFlags::HUP | PollFlags::ERR | PollFlags::RDHUP;
    let mut asked = [PollFd::from_borrowed_fd(socket, PollFlags::RDHUP)];
    let answered = poll(&mut asked, Some(&Timespec::default()));
    answered.is_ok() && asked[0].revents().intersects(gone)
}

/// Ends both directions of a socket; its owner and its peer see the end of it.
pub fn shut_down(socket: RawFd) {
    if let Some(socket) = borrowed(socket) {
        // Whoever is not connected any more needs no end.
        let _ = rustix::net::shutdown(socket, Shutdown::Both);
    }
}

#[expect(unsafe_code, reason = "the descriptor is of a socket that another thread owns")]
fn borrowed<'a>(socket: RawFd) -> Option<BorrowedFd<'a>> {
    // SAFETY: the number is not -1, as asked for. Callers hold descriptors that their owner takes off the list before
    // it closes them; a number that were closed all the same, and perhaps opened anew, would be polled or shut down in
    // place of the one meant, which can end a connection, but touches no memory.
    (socket >= 0).then(|| unsafe { BorrowedFd::borrow_raw(socket) })
}

#[cfg(test)]
mod tests {
    use std::{
        io::Read as _,
        net::{TcpListener, TcpStream},
        os::fd::AsRawFd as _,
    };

    use super::*;

    #[test]
    fn a_peer_is_there_until_it_closes() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (socket, _) = listener.accept().unwrap();
        assert!(!peer_is_gone(socket.as_raw_fd()));
        drop(peer);
        while !peer_is_gone(socket.as_raw_fd()) {
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_socket_that_is_shut_down_ends_for_both() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut socket, _) = listener.accept().unwrap();
        shut_down(socket.as_raw_fd());
        assert_eq!(peer.read(&mut [0]).unwrap(), 0);
        assert_eq!(socket.read(&mut [0]).unwrap(), 0);
        shut_down(-1);
    }
}
