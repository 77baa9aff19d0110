//! Drives one of [`targets`] with libFuzzer: `fuzz TARGET [libFuzzer's arguments]`, and `fuzz --seeds TARGET FOLDER` writes what
//! it begins with. Built by fuzz/run.sh.

mod targets;

use std::ffi::{CString, c_char, c_int};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;

type Run = fn(&[u8]);
type Seeds = fn() -> Vec<Vec<u8>>;

static RUN: OnceLock<Run> = OnceLock::new();

unsafe extern "C" {
    fn LLVMFuzzerRunDriver(
        argc: *mut c_int,
        argv: *mut *mut *mut c_char,
        one: extern "C" fn(*const u8, usize) -> c_int,
    ) -> c_int;
}

/// Codecs report damage by panics that we catch, so only one that comes out here is a finding.
extern "C" fn one(data: *const u8, length: usize) -> c_int {
    let bytes = match length {
        0 => &[][..],
        // SAFETY: libFuzzer gives `length` bytes at `data`, which live until this returns.
        _ => unsafe { std::slice::from_raw_parts(data, length) },
    };
    let run = RUN.get().expect("main has set it");
    if catch_unwind(AssertUnwindSafe(|| run(bytes))).is_err() {
        std::process::abort();
    }
    0
}

fn target(name: &str) -> (Run, Seeds) {
    #[cfg(fuzzing)]
    {
        use imagedex::engines::elastic::probe;
        let request: Run = |bytes| probe::bulk_request(&String::from_utf8_lossy(bytes));
        let requests: Seeds = || vec![b"a\x1fb\n{\"index\":{}}\n\x1f\"\\".to_vec()];
        let answer: Run = probe::bulk_answer;
        let answers: Seeds = || {
            let error = r#"{"type":"a","reason":"b","root_cause":[{"type":"c"}]}"#;
            vec![format!(r#"{{"items":[{{"index":{{"status":429,"error":{error}}}}}]}}"#).into_bytes()]
        };
        match name {
            "bulk_request" => return (request, requests),
            "bulk_answer" => return (answer, answers),
            _ => {}
        }
    }
    let found = targets::TARGETS.iter().find(|target| target.name == name);
    let found = found.unwrap_or_else(|| panic!("there is no target {name}"));
    (found.run, found.seeds)
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, flag, name, folder] = &*arguments
        && flag == "--seeds"
    {
        for (i, seed) in target(name).1().into_iter().enumerate() {
            std::fs::write(format!("{folder}/seed-{i}"), seed).expect("the folder can be written");
        }
        return;
    }
    let name = arguments.get(1).expect("usage: fuzz TARGET [libFuzzer's arguments]");
    let _ = RUN.set(target(name).0);
    let rest = arguments.iter().enumerate().filter(|(i, _)| *i != 1).map(|(_, argument)| argument.as_str());
    let owned: Vec<CString> = rest.map(|argument| CString::new(argument).expect("no NUL")).collect();
    let mut pointers: Vec<*mut c_char> = owned.iter().map(|argument| argument.as_ptr().cast_mut()).collect();
    let mut count = pointers.len() as c_int;
    pointers.push(std::ptr::null_mut());
    let mut arguments = pointers.as_mut_ptr();
    // SAFETY: `count` strings that end with NUL, and a null pointer after them; all live until the process ends.
    let code = unsafe { LLVMFuzzerRunDriver(&mut count, &mut arguments, one) };
    std::process::exit(code);
}
