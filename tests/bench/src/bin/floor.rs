//! The floor: what fanning an event out costs when a server does nothing but wait and write. One thread, one
//! epoll, one `write` for each subscriber and event; no tokens, no history, no heartbeats, no slow clients.
//!
//! Usage: `floor PORT LENGTH-OF-ID`. `GET` opens a stream, `POST` sends its body to all of them.

use std::{
    io::{Read, Write},
    net::SocketAddr,
};

use mio::{
    Events, Interest, Poll, Token,
    net::{TcpListener, TcpStream},
};

const LISTENER: Token = Token(usize::MAX);
const HEAD: &[u8] =
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-store\r\nconnection: close\r\n\r\n";

fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut number = || arguments.next().and_then(|text| text.parse::<usize>().ok());
    let (Some(port), Some(id)) = (number(), number()) else {
        eprintln!("usage: floor PORT LENGTH-OF-ID");
        std::process::exit(2);
    };
    let address = SocketAddr::from(([127, 0, 0, 1], u16::try_from(port).expect("a port")));
    serve(listen(address), &"i".repeat(id));
}

fn listen(address: SocketAddr) -> TcpListener {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket.set_reuse_address(true).expect("an option");
    socket.set_tcp_nodelay(true).expect("an option");
    socket.bind(&address.into()).expect("a free port");
    socket.listen(4096).expect("a listening socket");
    socket.set_nonblocking(true).expect("an option");
    TcpListener::from_std(socket.into())
}

fn serve(mut listener: TcpListener, id: &str) -> ! {
    let mut poll = Poll::new().expect("a poll descriptor");
    let mut events = Events::with_capacity(1024);
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE).expect("a registration");
    let mut sockets: Vec<Option<TcpStream>> = Vec::new();
    let mut streams: Vec<usize> = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        poll.poll(&mut events, None).expect("events");
        for event in &events {
            if event.token() == LISTENER {
                while let Ok((mut socket, _)) = listener.accept() {
                    let token = Token(sockets.len());
                    poll.registry().register(&mut socket, token, Interest::READABLE).expect("a registration");
                    sockets.push(Some(socket));
                }
                continue;
            }
            let token = event.token().0;
            let Some(mut socket) = sockets[token].as_ref() else { continue };
            match socket.read(&mut buffer) {
                Ok(0) => {
                    sockets[token] = None;
                    streams.retain(|stream| *stream != token);
                }
                Ok(_) if buffer.starts_with(b"GET") => {
                    let _ = socket.write(HEAD);
                    streams.push(token);
                }
                Ok(read) => {
                    let text = String::from_utf8_lossy(&buffer[..read]).into_owned();
                    let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
                    let _ = socket.write(b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n");
                    let event = format!("id: {id}\ndata: {body}\n\n");
                    for stream in &streams {
                        if let Some(mut socket) = sockets[*stream].as_ref() {
                            let _ = socket.write(event.as_bytes());
                        }
                    }
                }
                Err(_) => {}
            }
        }
    }
}
