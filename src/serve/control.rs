//! The control socket: a Unix socket of its owner alone, a JSON object a line each way.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use super::protocol::{MAX_LINE_BYTES, Reply, Request};
use super::{Message, ServeError};

/// Connections at a time.
const CONNECTIONS: usize = 16;
/// A connection that says nothing for so long is closed.
const SILENCE: Duration = Duration::from_secs(60);
/// Events that may wait for a slow listener; it misses those beyond.
const EVENTS: usize = 256;

/// The socket; it is gone when this is dropped.
#[derive(Debug)]
pub(super) struct Control {
    path: PathBuf,
    stop: Arc<AtomicBool>,
}

impl Control {
    /// Listens on `path`, and hands on what is asked to `to`.
    ///
    /// # Errors
    /// A path that is taken by another daemon or by a file that is no socket; a folder that cannot be written.
    pub(super) fn open(path: &Path, to: SyncSender<Message>) -> Result<Self, ServeError> {
        let io = |action| move |source| ServeError::File { action, path: path.to_owned(), source };
        if let Some(folder) = path.parent() {
            let mut builder = fs::DirBuilder::new();
            builder.recursive(true).mode(0o700).create(folder).map_err(io("make the folder of"))?;
        }
        if let Ok(metadata) = fs::symlink_metadata(path) {
            use std::os::unix::fs::FileTypeExt;
            if !metadata.file_type().is_socket() {
                return Err(io("listen on")(ErrorKind::AlreadyExists.into()));
            }
            if UnixStream::connect(path).is_ok() {
                return Err(ServeError::Running { socket: path.to_owned() });
            }
            // Left by a daemon that was killed.
            fs::remove_file(path).map_err(io("remove"))?;
        }
        // It has its permissions before it has its name.
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let hidden = path.with_file_name(format!(".{name}.{}", std::process::id()));
        let _ = fs::remove_file(&hidden);
        let listener = UnixListener::bind(&hidden).map_err(io("listen on"))?;
        fs::set_permissions(&hidden, fs::Permissions::from_mode(0o600)).map_err(io("listen on"))?;
        fs::rename(&hidden, path).map_err(io("listen on"))?;
        let stop = Arc::new(AtomicBool::new(false));
        let inner = stop.clone();
        let accept = move || {
            let open = Arc::new(AtomicUsize::new(0));
            for stream in listener.incoming() {
                if inner.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(stream) = stream else {
                    // Too many open files, say: others may close some.
                    std::thread::sleep(Duration::from_millis(100));
                    continue;
                };
                if open.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS {
                    open.fetch_sub(1, Ordering::Relaxed);
                    let _ = answer(&stream, &Reply::Refused(format!("{CONNECTIONS} connections are open; close one")));
                    continue;
                }
                let (to, stop, counted) = (to.clone(), inner.clone(), open.clone());
                let talk = move || {
                    // The other end went away: nothing is left to say.
                    let _ = converse(&stream, &to, &stop);
                    counted.fetch_sub(1, Ordering::Relaxed);
                };
                if std::thread::Builder::new().name("control".into()).spawn(talk).is_err() {
                    open.fetch_sub(1, Ordering::Relaxed);
                }
            }
        };
        std::thread::Builder::new()
            .name("control".into())
            .spawn(accept)
            .map_err(|e| ServeError::Thread { source: e })?;
        Ok(Self { path: path.to_owned(), stop })
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the one who accepts.
        let _ = UnixStream::connect(&self.path);
        let _ = fs::remove_file(&self.path);
    }
}

fn answer(mut to: &UnixStream, reply: &Reply) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    to.write_all(&line)
}

fn converse(stream: &UnixStream, to: &SyncSender<Message>, stop: &AtomicBool) -> std::io::Result<()> {
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    let mut lines = BufReader::new(stream);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = (&mut lines).take(MAX_LINE_BYTES as u64).read_until(b'\n', &mut line)?;
        if read == 0 || stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        if line.last() != Some(&b'\n') && read == MAX_LINE_BYTES {
            return answer(stream, &Reply::Refused(format!("a request has at most {MAX_LINE_BYTES} bytes")));
        }
        let gone = || std::io::Error::from(ErrorKind::BrokenPipe);
        let request = match serde_json::from_slice(&line) {
            Ok(Request::Events {}) => {
                let (events, from) = sync_channel::<Arc<str>>(EVENTS);
                to.send(Message::Listen(events)).map_err(|_| gone())?;
                answer(stream, &Reply::Done("events follow".into()))?;
                loop {
                    match from.recv_timeout(Duration::from_secs(1)) {
                        Ok(event) => (&mut &*stream).write_all(event.as_bytes())?,
                        // Whoever went away says nothing any more, and reads no events in a quiet house either.
                        Err(RecvTimeoutError::Timeout) if !stop.load(Ordering::Relaxed) => {
                            stream.set_read_timeout(Some(Duration::from_millis(1)))?;
                            if matches!((&mut &*stream).read(&mut [0; 64]), Ok(0)) {
                                return Ok(());
                            }
                        }
                        Err(_) => return Ok(()),
                    }
                }
            }
            Ok(request) => request,
            Err(error) => {
                answer(stream, &Reply::Refused(format!("no request: {error}")))?;
                continue;
            }
        };
        let (reply, from) = sync_channel(1);
        to.send(Message::Ask(request, reply)).map_err(|_| gone())?;
        answer(stream, &from.recv().map_err(|_| gone())?)?;
    }
}

/// Asks the daemon behind `socket`.
///
/// # Errors
/// No daemon there; an answer that is none.
pub fn ask(socket: &Path, request: &Request) -> Result<Reply, ServeError> {
    let mut lines = connect(socket, request)?;
    let io = |source| ServeError::File { action: "talk to the daemon on", path: socket.to_owned(), source };
    let mut line = String::new();
    lines.read_line(&mut line).map_err(io)?;
    serde_json::from_str(&line).map_err(|e| io(std::io::Error::new(ErrorKind::InvalidData, e)))
}

/// Sends a request to the daemon behind `socket`; what it says to it comes line by line.
///
/// # Errors
/// No daemon there.
pub fn connect(socket: &Path, request: &Request) -> Result<BufReader<UnixStream>, ServeError> {
    let io = |source| ServeError::File { action: "talk to the daemon on", path: socket.to_owned(), source };
    let mut stream = UnixStream::connect(socket).map_err(|source| match source.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => ServeError::NotRunning { socket: socket.to_owned() },
        _ => io(source),
    })?;
    let mut line = serde_json::to_vec(request).map_err(|e| io(e.into()))?;
    line.push(b'\n');
    stream.write_all(&line).map_err(io)?;
    Ok(BufReader::new(stream))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_come_and_answers_go() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("run/control");
        let (to, from) = sync_channel(8);
        let control = Control::open(&socket, to.clone()).unwrap();
        assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(Control::open(&socket, to.clone()), Err(ServeError::Running { .. })));
        let daemon = std::thread::spawn(move || {
            let mut listeners = Vec::new();
            while let Ok(message) = from.recv_timeout(Duration::from_secs(5)) {
                match message {
                    Message::Ask(Request::Status {}, reply) => {
                        reply.send(Reply::Done("well".into())).unwrap();
                        return listeners;
                    }
                    Message::Listen(events) => {
                        events.send("{\"event\":\"x\"}\n".into()).unwrap();
                        listeners.push(events);
                    }
                    _ => {}
                }
            }
            listeners
        });
        let mut events = connect(&socket, &Request::Events {}).unwrap();
        let mut line = String::new();
        events.read_line(&mut line).unwrap();
        line.clear();
        events.read_line(&mut line).unwrap();
        assert_eq!(line, "{\"event\":\"x\"}\n");
        // Nonsense gets an answer, and the connection goes on.
        let mut raw = UnixStream::connect(&socket).unwrap();
        raw.write_all(b"hello\n{\"ask\":\"status\"}\n").unwrap();
        let mut lines = BufReader::new(raw).lines();
        assert!(lines.next().unwrap().unwrap().contains("no request"));
        assert!(lines.next().unwrap().unwrap().contains("well"));
        daemon.join().unwrap();
        drop(control);
        assert!(!socket.exists());
        assert!(matches!(ask(&socket, &Request::Status {}), Err(ServeError::NotRunning { .. })));
        // What a killed daemon left is no obstacle, a file of somebody's is.
        drop(UnixListener::bind(&socket).unwrap());
        drop(Control::open(&socket, to.clone()).unwrap());
        fs::write(&socket, "mine").unwrap();
        assert!(Control::open(&socket, to).is_err());
        assert_eq!(fs::read(&socket).unwrap(), b"mine");
    }

    #[test]
    fn a_line_without_end_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("control");
        let (to, _from) = sync_channel(8);
        let _control = Control::open(&socket, to).unwrap();
        let mut raw = UnixStream::connect(&socket).unwrap();
        raw.write_all(&vec![b'x'; MAX_LINE_BYTES]).unwrap();
        let mut line = String::new();
        BufReader::new(raw).read_line(&mut line).unwrap();
        assert!(line.contains("at most"), "{line}");
    }
}
