//! A server's process: it ends with the test that owns it, or with the test program, however that ends.

use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

/// A server that was started, and what ends it.
pub struct Process {
    /// The launcher, which leads the process group of launcher and server.
    pub server: Child,
    watchdog: Option<Child>,
}

impl Process {
    /// Starts a server whose output goes to `log` in `folder`, and beside it a watchdog that ends it and removes the folder once we let
    /// go of the watchdog's input: by dropping this, or by ending in any way. A parent-death signal would do neither: it belongs to
    /// the thread that spawned the server, which is one test's, and it is lost where root becomes `nobody`.
    pub fn start(command: &mut Command, folder: &TempDir) -> Process {
        let log = std::fs::File::create(folder.path().join("log")).expect("writable");
        let server = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file"))
            .stderr(log)
            .process_group(0)
            .spawn()
            .expect("it starts");
        let watchdog = Command::new("sh")
            // `kill` of some shells knows no `--`. A server that is being killed may still write a file.
            .args(["-c", "cat; kill -KILL -$0; rm -rf \"$1\" || { sleep 1; rm -rf \"$1\"; }"])
            .arg(server.id().to_string())
            .arg(folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Ctrl-C on the tests must not reach it first.
            .process_group(0)
            .spawn()
            .expect("sh starts");
        Process { server, watchdog: Some(watchdog) }
    }

    /// Ends the server as a power cut would: at once, with no word to anyone. Its folder stays.
    pub fn kill(&mut self) {
        if let Some(watchdog) = self.watchdog.take() {
            release(watchdog);
        }
        let group = format!("-{}", self.server.id());
        let killed = Command::new("kill").args(["-KILL", "--", &group]).status();
        assert!(killed.expect("kill starts").success());
        self.server.wait().expect("it has ended");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(mut watchdog) = self.watchdog.take() {
            drop(watchdog.stdin.take());
            // Neither can be helped any more.
            let _ = watchdog.wait();
            let _ = self.server.wait();
        }
    }
}

/// Ends a watchdog, and nothing else: its process group is itself and what it runs.
fn release(mut watchdog: Child) {
    let group = format!("-{}", watchdog.id());
    let ended = Command::new("kill").args(["-KILL", "--", &group]).status();
    assert!(ended.expect("kill starts").success());
    watchdog.wait().expect("it has ended");
}

/// A port that is free, and the next one, for the transport. Below those that the kernel gives to outgoing connections: a port
/// must still be free when its server starts again.
pub fn free_ports() -> u16 {
    loop {
        let port = fastrand::u16(15_000..32_000);
        if (port..=port + 1).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok()) {
            return port;
        }
    }
}

#[test]
fn it_ends_when_its_owner_is_killed() {
    use std::os::unix::process::ExitStatusExt;
    // The owner is a shell, which stands for a test program: it holds the watchdog's input, and dies by signal 9.
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut process = Process::start(Command::new("sleep").arg("1000"), &folder);
    let mut watchdog = process.watchdog.take().expect("a watchdog");
    let input = watchdog.stdin.take().expect("its input");
    let mut owner =
        Command::new("sleep").arg("1000").stdout(Stdio::from(input)).spawn().expect("sleep starts");
    assert!(process.server.try_wait().expect("its state").is_none(), "the server has ended too early");
    owner.kill().expect("it can be killed");
    owner.wait().expect("it has ended");
    watchdog.wait().expect("it has ended");
    assert_eq!(process.server.wait().expect("it has ended").signal(), Some(9));
    assert!(!folder.path().exists(), "its folder is still there");
}
