//! The members of a tar file, from their headers alone: 512 bytes are read of each, and what lies between is passed over.
//!
//! The crate `tar` reads the fields of a header. Its own iterator takes a file that was cut at a border for a whole one, and names
//! of any length into memory; here an archive without its end mark is told, and headers that say too much are refused.

use std::fs::File;
use std::os::unix::fs::FileExt;

use tar::Header;

use crate::text::visible;

/// Headers, and the places of members, are multiples of this.
const BLOCK: u64 = 512;
/// A name or a set of PAX records longer than this is no name. Linux allows paths of 4,096 bytes.
const LONGEST: u64 = 1 << 20;
/// So far behind the end mark something else is looked for; tar fills up to 10 KiB with zeros.
const PADDING: u64 = 1 << 16;

/// One member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    /// As it is written: any bytes.
    pub name: Vec<u8>,
    pub kind: Kind,
    /// Where its content begins, and how long it is; all of that is there.
    pub at: u64,
    pub length: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Folder,
    /// A symbolic or a hard one.
    Link,
    /// A device, a pipe, a volume's label.
    Other,
}

/// Why nothing more is read of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Broken {
    /// Its members do not lie in it as they are: the whole archive is refused.
    Refused(String),
    /// It is cut short or damaged: what came before is sound, but for the sample under way.
    Damaged(String),
    /// It is whole, and something follows it.
    Followed,
}

/// The members in their order; after an error nothing more.
pub(super) struct Members {
    file: File,
    /// Of the file.
    length: u64,
    /// Of the next header.
    at: u64,
    is_done: bool,
}

impl Members {
    pub(super) fn of(file: File) -> std::io::Result<Members> {
        let length = file.metadata()?.len();
        Ok(Members { file, length, at: 0, is_done: false })
    }

    /// The first bytes of a member's content, at most `most`.
    pub(super) fn content(&self, at: u64, length: u64, most: usize) -> std::io::Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(most).min(most)];
        self.file.read_exact_at(&mut bytes, at)?;
        Ok(bytes)
    }

    fn member(&mut self) -> Result<Option<Member>, Broken> {
        if self.at == 0 {
            self.refuse_compressed()?;
        }
        let mut said = Said::default();
        loop {
            let start = self.at;
            let Some(Head { letter, size, name }) = self.head(start)? else {
                return match said.is_empty() {
                    true => self.end(),
                    false => {
                        Err(Broken::Damaged(format!("at byte {start} the member is missing that has a name")))
                    }
                };
            };
            let is_extension = matches!(letter, b'L' | b'K' | b'x' | b'X' | b'g');
            let length = match letter {
                // What has no content may have a size: that of what it links to.
                b'1'..=b'6' => 0,
                _ => said.size.filter(|_| !is_extension).unwrap_or(size),
            };
            let at = start + BLOCK;
            let Some(end) = at.checked_add(length).filter(|end| *end <= self.length) else {
                let name = shown(&said.path.or(said.long_name).unwrap_or(name));
                return Err(Broken::Damaged(format!(
                    "it ends within {name}, which begins at byte {start} and is {length} bytes long"
                )));
            };
            self.at = end.next_multiple_of(BLOCK);
            if is_extension {
                if length > LONGEST {
                    return Err(Broken::Damaged(format!(
                        "at byte {start} there is a name of {length} bytes"
                    )));
                }
                let text = self.content(at, length, LONGEST as usize).map_err(|error| unread(at, &error))?;
                said.take(letter, &text)
                    .ok_or_else(|| Broken::Damaged(format!("the PAX records at byte {at} are damaged")))?;
                continue;
            }
            let name = said.path.or(said.long_name).unwrap_or(name);
            let kind = match letter {
                b'M' => return Err(Broken::Refused(format!("{} goes on from another volume", shown(&name)))),
                _ if letter == b'S' || said.is_sparse => {
                    return Err(Broken::Refused(format!("{} is stored sparse", shown(&name))));
                }
                // Of old: a folder is a file whose name says so.
                b'0' if name.ends_with(b"/") => Kind::Folder,
                b'0' | b'7' => Kind::File,
                b'5' => Kind::Folder,
                b'1' | b'2' => Kind::Link,
                _ => Kind::Other,
            };
            return Ok(Some(Member { name, kind, at, length }));
        }
    }

    /// The header at `start`; nothing where zeros are there.
    fn head(&self, start: u64) -> Result<Option<Head>, Broken> {
        let mut block = [0; BLOCK as usize];
        if start.saturating_add(BLOCK) > self.length {
            return Err(Broken::Damaged(match self.length {
                0 => "the file is empty".to_owned(),
                _ => format!("it ends at byte {} without its end mark", self.length),
            }));
        }
        self.file.read_exact_at(&mut block, start).map_err(|error| unread(start, &error))?;
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let header = Header::from_byte_slice(&block);
        // Of all bytes; those of the sum itself count as blanks.
        let sum = |bytes: &[u8]| bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>();
        let sum = sum(&block[..148]) + sum(&block[156..]) + 8 * u32::from(b' ');
        match (header.cksum(), header.entry_size()) {
            (Ok(said), Ok(size)) if said == sum => Ok(Some(Head {
                letter: header.entry_type().as_byte(),
                size,
                name: header.path_bytes().into_owned(),
            })),
            _ => Err(Broken::Damaged(format!("there is no header of a tar file at byte {start}"))),
        }
    }

    /// Tells what compresses the archive, by the first bytes.
    fn refuse_compressed(&self) -> Result<(), Broken> {
        const KINDS: [(&[u8], &str); 6] = [
            (b"\x1f\x8b", "gzip"),
            (b"\x28\xb5\x2f\xfd", "zstd"),
            (b"BZh", "bzip2"),
            (b"\xfd7zXZ\0", "xz"),
            (b"\x04\x22\x4d\x18", "lz4"),
            (b"PK\x03\x04", "zip"),
        ];
        let head = self.content(0, self.length, 8).map_err(|error| unread(0, &error))?;
        match KINDS.iter().find(|(magic, _)| head.starts_with(magic)) {
            Some((_, name)) => Err(Broken::Refused(format!("it is compressed ({name})"))),
            None => Ok(()),
        }
    }

    /// After a block of zeros: there must be no more than zeros.
    fn end(&mut self) -> Result<Option<Member>, Broken> {
        let most = PADDING.min(self.length - self.at);
        let rest = self.content(self.at, most, PADDING as usize).map_err(|error| unread(self.at, &error))?;
        if rest.iter().any(|byte| *byte != 0) {
            return Err(Broken::Followed);
        }
        Ok(None)
    }
}

impl Iterator for Members {
    type Item = Result<Member, Broken>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_done {
            return None;
        }
        let member = self.member().transpose();
        self.is_done = !matches!(member, Some(Ok(_)));
        member
    }
}

/// What a header says.
struct Head {
    /// The kind of member.
    letter: u8,
    size: u64,
    name: Vec<u8>,
}

fn unread(at: u64, error: &std::io::Error) -> Broken {
    Broken::Damaged(format!("byte {at} cannot be read: {error}"))
}

/// A name in a message.
fn shown(name: &[u8]) -> String {
    visible(&String::from_utf8_lossy(name))
}

/// What is said of a member before its header.
#[derive(Debug, Default)]
struct Said {
    /// GNU's way.
    long_name: Option<Vec<u8>>,
    /// POSIX' way: PAX records.
    path: Option<Vec<u8>>,
    size: Option<u64>,
    is_sparse: bool,
    is_there: bool,
}

impl Said {
    fn is_empty(&self) -> bool {
        !self.is_there
    }

    /// Takes the content of what has this letter. Nothing where it is damaged.
    fn take(&mut self, letter: u8, text: &[u8]) -> Option<()> {
        // GNU's target of a link and records for all members describe none alone.
        self.is_there |= !matches!(letter, b'K' | b'g');
        match letter {
            b'L' => self.long_name = text.split(|byte| *byte == 0).next().map(<[u8]>::to_vec),
            b'K' => {}
            b'g' => {
                let mut of_all = Said::default();
                of_all.records(text)?;
                // One name or one size for all members is a trap.
                (of_all.path.is_none() && of_all.size.is_none()).then_some(())?;
            }
            _ => self.records(text)?,
        }
        Some(())
    }

    /// PAX records: each is `length key=value\n`, its length included; a value may hold anything.
    fn records(&mut self, mut text: &[u8]) -> Option<()> {
        // Some writers fill up with zeros.
        while text.first().is_some_and(|byte| *byte != 0) {
            let blank = text.iter().take(20).position(|byte| *byte == b' ')?;
            let length: usize = std::str::from_utf8(&text[..blank]).ok()?.parse().ok()?;
            let record = text.get(blank + 1..length)?.strip_suffix(b"\n")?;
            let equals = record.iter().position(|byte| *byte == b'=')?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            match key {
                b"path" => self.path = Some(value.to_vec()),
                b"size" => self.size = Some(std::str::from_utf8(value).ok()?.parse().ok()?),
                _ => self.is_sparse |= key.starts_with(b"GNU.sparse."),
            }
            text = &text[length..];
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pax_records_may_hold_line_ends_and_must_be_as_long_as_they_say() {
        let mut said = Said::default();
        said.records(b"12 path=a\nb\n9 size=7\n16 comment=size\n\0\0").unwrap();
        assert_eq!((said.path.as_deref(), said.size, said.is_sparse), (Some(&b"a\nb"[..]), Some(7), false));
        said.records(b"22 GNU.sparse.major=1\n").unwrap();
        assert!(said.is_sparse);
        let bad: [&[u8]; 7] = [
            b"9 path=a\nb\n",
            b"99 path=a\n",
            b"path=a\n",
            b"0 a=b\n",
            b"6 a=b\n6",
            b"5 ab\n",
            b"11 size=-7\n",
        ];
        for text in bad {
            assert!(Said::default().records(text).is_none(), "{}", text.escape_ascii());
        }
        assert!(Said::default().take(b'g', b"9 size=7\n").is_none());
        assert!(Said::default().take(b'g', b"16 comment=size\n").is_some());
    }
}
