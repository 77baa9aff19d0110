//! One artefact from its registry into a folder: the ordinary client fetches, we check and unpack.
//!
//! The client runs as a child process, so a mirror, proxy or certificate that is configured for `pip` or `npm` works
//! here too. Its caches and temporary files are pointed into our work folder: nothing is left elsewhere. The surprise
//! for a newcomer: the client's success means nothing, only the SHA-256 of the file that it left does.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use flate2::read::GzDecoder;
use sha2::{Digest, Sha256};

use super::sources::{Artefact, Client, Member};
use super::{SetupError, io_error, remove_folder_if_there};

/// How often a damaged download is fetched again before set-up gives up.
const TRIES: usize = 3;

/// The Python whose wheels are asked for, whatever Python runs pip: the table's ONNX Runtime wheels are for 3.11.
/// Only shared libraries are taken from them, which do not depend on it.
const WHEEL_PYTHON: &str = "311";

/// Where npm keeps its copy of the download, below the folder that it works in.
const NPM_CACHE: &str = "npm-cache";

/// Lines of a failed client's output that are shown, and the length at which each is cut.
const SHOWN_LINES: usize = 12;
const SHOWN_CHARS: usize = 240;

impl Client {
    /// Name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Client::Pip => "pip",
            Client::Npm => "npm",
        }
    }

    fn install_hint(self) -> &'static str {
        match self {
            Client::Pip => {
                "Debian and Ubuntu: apt-get install python3-pip; Fedora: dnf install python3-pip; macOS: brew install python"
            }
            Client::Npm => {
                "Debian and Ubuntu: apt-get install npm; Fedora: dnf install npm; macOS: brew install node"
            }
        }
    }

    /// The client as a command, looked up in `search_path` (`None`: this process's `PATH`), with every cache, log and
    /// temporary file inside `work`.
    fn command(self, search_path: Option<&OsStr>, work: &Path) -> Command {
        let mut command = match self {
            Client::Pip => {
                let mut python = Command::new("python3");
                python.args(["-m", "pip"]).env("PYTHONDONTWRITEBYTECODE", "1");
                python.envs([
                    ("PIP_DISABLE_PIP_VERSION_CHECK", "1"),
                    ("PIP_NO_INPUT", "1"),
                    ("PIP_NO_CACHE_DIR", "1"),
                ]);
                python
            }
            Client::Npm => {
                let mut npm = Command::new("npm");
                npm.env("npm_config_cache", work.join(NPM_CACHE))
                    .envs([("npm_config_update_notifier", "false"), ("npm_config_logs_max", "0")]);
                npm
            }
        };
        if let Some(path) = search_path {
            command.env("PATH", path); // on Unix the child's PATH is also where the program itself is looked up
        }
        command.env("TMPDIR", work).current_dir(work).stdin(Stdio::null());
        command
    }

    /// Says what to install where the client is missing, before anything is downloaded.
    ///
    /// # Errors
    /// [`SetupError::MissingTool`].
    pub fn check(self, search_path: Option<&OsStr>, work: &Path) -> Result<(), SetupError> {
        let output = self.command(search_path, work).arg("--version").output();
        let (tool, why) = match (self, output) {
            (_, Ok(output)) if output.status.success() => return Ok(()),
            (Client::Pip, Ok(output)) => ("python3's module `pip`", last_lines(&output, 1)),
            (Client::Npm, Ok(output)) => ("npm", last_lines(&output, 1)),
            (Client::Pip, Err(e)) => ("python3", e.to_string()),
            (Client::Npm, Err(e)) => ("npm", e.to_string()),
        };
        Err(SetupError::MissingTool { tool, why: why.trim().to_owned(), install: self.install_hint() })
    }
}

/// Downloads an artefact into `work`, checks it, unpacks its members below a folder there and returns that folder.
///
/// Every member has been checked against the table and flushed to disk; the download itself is gone again. A file with
/// a wrong SHA-256 is fetched anew, three times in all, each time without any of the client's caches.
///
/// # Errors
/// [`SetupError::Client`] with the client's last lines; [`SetupError::Damaged`] after the last try;
/// [`SetupError::Member`] where the table and the package disagree; [`SetupError::DiskFull`] and [`SetupError::Io`].
pub fn fetch(
    artefact: &Artefact,
    search_path: Option<&OsStr>,
    work: &Path,
    say: &dyn Fn(&str),
) -> Result<PathBuf, SetupError> {
    let mut found = String::new();
    for attempt in 1..=TRIES {
        let folder = work.join(format!("{}-{attempt}", artefact.name));
        fs::create_dir(&folder).map_err(io_error("create", &folder))?;
        let file = download(artefact, search_path, &folder)?;
        found = sha256_of(&file)?;
        if found == artefact.sha256 {
            let unpacked = work.join(&artefact.name);
            unpack(artefact, &file, &unpacked)?;
            fs::remove_dir_all(&folder).map_err(io_error("remove", &folder))?;
            return Ok(unpacked);
        }
        fs::remove_dir_all(&folder).map_err(io_error("remove", &folder))?;
        if attempt < TRIES {
            say(&format!("{}: the download is damaged (sha256 {found}), fetching it again", artefact.file));
        }
    }
    Err(SetupError::Damaged {
        file: artefact.file.clone(),
        tries: TRIES,
        expected: artefact.sha256.clone(),
        found,
    })
}

/// Runs the client; the path of the file that it left.
fn download(artefact: &Artefact, search_path: Option<&OsStr>, folder: &Path) -> Result<PathBuf, SetupError> {
    let mut command = artefact.client.command(search_path, folder);
    match artefact.client {
        Client::Pip => {
            command.args(["download", "--no-deps", "--only-binary=:all:", "--implementation", "cp"]);
            command.args(["--python-version", WHEEL_PYTHON, "--progress-bar", "off"]);
            if let Some(platform) = &artefact.pip_platform {
                command.args(["--platform", platform]);
            }
            command.arg("--dest").arg(folder).arg(format!("{}=={}", artefact.package, artefact.version));
        }
        Client::Npm => {
            command.args(["pack", "--ignore-scripts", "--pack-destination"]).arg(folder);
            command.arg(format!("{}@{}", artefact.package, artefact.version));
        }
    }
    let failed = |lines: String| SetupError::Client {
        client: artefact.client.name(),
        package: format!("{} {}", artefact.package, artefact.version),
        lines,
    };
    let output = command.output().map_err(|e| failed(format!("  {e}")))?;
    if !output.status.success() {
        // A full disk: pip passes the system's words on, npm writes them in lower case.
        let all = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
        if String::from_utf8_lossy(&all).to_lowercase().contains("no space left on device") {
            return Err(SetupError::DiskFull { path: folder.to_owned() });
        }
        return Err(failed(format!("{} ({})", last_lines(&output, SHOWN_LINES), output.status)));
    }
    let file = folder.join(&artefact.file);
    // A second copy of the download, which would be on the disk while the first is unpacked.
    remove_folder_if_there(&folder.join(NPM_CACHE))?;
    if !file.is_file() {
        return Err(failed(format!("  it succeeded but left no {}", artefact.file)));
    }
    Ok(file)
}

fn last_lines(output: &Output, count: usize) -> String {
    let text = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    let text = String::from_utf8_lossy(&text);
    // npm ends with a stack trace and a note on logs that we switched off; what went wrong stands above them.
    let noise = |line: &str| {
        line.is_empty()
            || line == "npm error"
            || line.contains("    at ")
            || line.contains("Log files were not written")
    };
    let lines: Vec<&str> = text.lines().map(str::trim_end).filter(|line| !noise(line)).collect();
    let cut = |line: &&str| match line.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("  {}…", &line[..end]),
        None => format!("  {line}"),
    };
    lines[lines.len().saturating_sub(count)..].iter().map(cut).collect::<Vec<_>>().join("\n")
}

/// Unpacks the members of a checked download below `into`, each at its `to`.
fn unpack(artefact: &Artefact, file: &Path, into: &Path) -> Result<(), SetupError> {
    let member_error = |member: &str, problem: String| SetupError::Member {
        file: artefact.file.clone(),
        member: member.to_owned(),
        problem,
    };
    let archive = File::open(file).map_err(io_error("open", file))?;
    let mut done = 0;
    match artefact.client {
        Client::Pip => {
            let mut zip =
                zip::ZipArchive::new(archive).map_err(|e| member_error("(directory)", e.to_string()))?;
            for member in &artefact.extract {
                let mut entry =
                    zip.by_name(&member.member).map_err(|e| member_error(&member.member, e.to_string()))?;
                unpack_member(&mut entry, member, into, &member_error)?;
                done += 1;
            }
        }
        Client::Npm => {
            let mut tar = tar::Archive::new(GzDecoder::new(archive));
            for entry in tar.entries().map_err(io_error("read", file))? {
                let mut entry = entry.map_err(io_error("read", file))?;
                let name = entry.path().map_err(io_error("read", file))?.into_owned();
                if let Some(member) = artefact.extract.iter().find(|m| Path::new(&m.member) == name) {
                    unpack_member(&mut entry, member, into, &member_error)?;
                    done += 1;
                }
            }
        }
    }
    if done != artefact.extract.len() {
        let problem = format!("{done} of {} members found", artefact.extract.len());
        return Err(member_error("(archive)", problem));
    }
    Ok(())
}

fn unpack_member(
    from: &mut dyn Read,
    member: &Member,
    into: &Path,
    member_error: &dyn Fn(&str, String) -> SetupError,
) -> Result<(), SetupError> {
    let path = into.join(&member.to);
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(io_error("create", folder))?;
    }
    let mut file = File::create(&path).map_err(io_error("create", &path))?;
    let found = copy_hashed(from, &mut file).map_err(io_error("write", &path))?;
    file.sync_all().map_err(io_error("flush", &path))?;
    if found != member.sha256 {
        let problem = format!("sha256 is {found}, the table says {}", member.sha256);
        return Err(member_error(&member.member, problem));
    }
    Ok(())
}

/// Hex SHA-256 of a file.
///
/// # Errors
/// [`SetupError::Io`] with the path.
pub fn sha256_of(path: &Path) -> Result<String, SetupError> {
    let mut file = File::open(path).map_err(io_error("open", path))?;
    copy_hashed(&mut file, &mut io::sink()).map_err(io_error("read", path))
}

fn copy_hashed(from: &mut dyn Read, to: &mut dyn Write) -> io::Result<String> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(hex::encode(hasher.finalize())),
            Ok(n) => {
                hasher.update(&buffer[..n]);
                to.write_all(&buffer[..n])?;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}
