//! What is fuzzed: functions that take any bytes and must neither panic nor break their promise. `make fuzz` drives them
//! with libFuzzer (fuzz/main.rs), tests/it/fuzz.rs with their seeds and with every input that once broke one.

use std::collections::BTreeSet;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use image::{ImageFormat, RgbImage};
use imagedex::config::PipelineConfig;
use imagedex::engines::VectorIndex;
use imagedex::engines::flat::Flat;
use imagedex::exchange;
use imagedex::metric::Metric;
use imagedex::models::Resize;
use imagedex::stages::decode::{self, DecodeOptions, Exif, Picture};
use imagedex::stages::embed::EmbeddingBatch;
use imagedex::stages::evaluate::{self, EvaluateOptions, Mode};
use imagedex::stages::preprocess;
use imagedex::stages::report::{Exporter, Html, Junit, Markdown, Pictures, RunReport, Summary, Terminal};
use imagedex::stages::scan::{self, LabelRule, Places, Scan, ScanOptions, Source, Split};
use serde_json::json;

/// One function to fuzz.
pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]),
    /// Inputs to begin with, each of which takes another way.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All of them. Two more, for Elasticsearch's requests and answers, are beside that code.
pub const TARGETS: [Target; 7] = [
    Target { name: "decode", run: decode, seeds: pictures },
    Target { name: "manifest", run: manifest, seeds: manifests },
    Target { name: "archive", run: archive, seeds: archives },
    Target { name: "coco", run: coco, seeds: coco_files },
    Target { name: "features", run: features, seeds: feature_files },
    Target { name: "pipeline", run: pipeline, seeds: pipelines },
    Target { name: "report", run: report, seeds: labels },
];

/// A decoded picture is as large as it says and within the limit, whatever the file promised.
fn decode(bytes: &[u8]) {
    const MOST: u64 = 200_000;
    for exif in [Exif::Ignore, Exif::Apply] {
        let options = DecodeOptions { exif, max_pixels: MOST };
        let Ok(image) = decode::decode(bytes, &options) else { continue };
        let pixels = u64::from(image.width) * u64::from(image.height);
        assert!(pixels > 0 && pixels <= MOST && image.rgb.len() as u64 == 3 * pixels);
        for filter in [Resize::Nearest, Resize::Bilinear, Resize::Bicubic, Resize::Lanczos] {
            let resized = preprocess::resize(&image, 16, filter).expect("a picture can be resized");
            assert_eq!(resized.len(), 16 * 16 * 3);
        }
        let _ = (decode::dhash(&image), decode::pixel_sha256(&image));
    }
    let _ = decode::preview(bytes, &DecodeOptions { exif: Exif::Apply, max_pixels: MOST }, 16);
}

/// A picture in each format, and one with an EXIF orientation.
fn pictures() -> Vec<Vec<u8>> {
    use ImageFormat::*;
    let photo = RgbImage::from_fn(17, 11, |x, y| image::Rgb([(x * 15) as u8, (y * 23) as u8, (x * y) as u8]));
    let encoded = |format| {
        let mut bytes = Cursor::new(Vec::new());
        photo.write_to(&mut bytes, format).expect("encodes");
        bytes.into_inner()
    };
    let mut all: Vec<Vec<u8>> = [Jpeg, Png, WebP, Gif, Bmp, Tiff].map(encoded).into();
    let exif = [b"II*\0\x08\0\0\0\x01\0".as_slice(), b"\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"].concat();
    let mut bytes = Vec::new();
    let mut encoder = image::codecs::jpeg::JpegEncoder::new(&mut bytes);
    image::ImageEncoder::set_exif_metadata(&mut encoder, exif).expect("has EXIF");
    encoder.encode_image(&photo).expect("encodes");
    all.push(bytes);
    all
}

/// A folder that is kept for the process: making one for each input would be most of the work.
fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = std::env::temp_dir().join(format!("imagedex-fuzz-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("lists/a")).expect("writable");
        for name in ["outside.png", "lists/in.png", "lists/a/in.png"] {
            std::fs::write(folder.join(name), b"\x89PNG").expect("writable");
        }
        folder
    })
}

/// The bytes after the first, in a file whose ending the first byte chooses.
fn file(bytes: &[u8], endings: &[&str]) -> Option<PathBuf> {
    let (first, rest) = bytes.split_first()?;
    let path = folder().join("lists").join(format!("input.{}", endings[usize::from(*first) % endings.len()]));
    std::fs::write(&path, rest).expect("writable");
    Some(path)
}

/// What a scan of a gallery finds, if anything: unique ids, in order.
fn scanned(gallery: PathBuf, label: LabelRule) -> Option<Scan> {
    static RUNTIME: OnceLock<tokio::runtime::Runtime> = OnceLock::new();
    let runtime = RUNTIME.get_or_init(|| {
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
    });
    let options = ScanOptions { gallery, queries: None, images: None, label, outside: false };
    let found = runtime.block_on(scan::scan(&options)).ok()?;
    assert!(found.images.windows(2).all(|two| (two[0].split, &two[0].id) < (two[1].split, &two[1].id)));
    Some(found)
}

/// All of them are files below the folder of lists.
fn are_below(found: &Scan) {
    let lists = folder().join("lists").canonicalize().expect("a folder");
    for image in &found.images {
        let Source::File(path) = &image.source else { panic!("{} is no file", image.id) };
        let path = path.canonicalize().expect("it is there");
        assert!(path.starts_with(&lists), "{} leads to {}", image.id, path.display());
    }
}

/// A manifest leads to pictures below its folder or to none.
fn manifest(bytes: &[u8]) {
    let Some(gallery) = file(bytes, &["csv", "jsonl", "parquet"]) else { return };
    if let Some(found) = scanned(gallery, LabelRule::None) {
        are_below(&found);
    }
}

fn manifests() -> Vec<Vec<u8>> {
    let texts: [&[u8]; 4] = [
        b"\0path,label,split\nin.png,x,gallery\na/in.png,\"y\nz\",train\n../outside.png,x,test\n",
        b"\0filename,is_query,is_gallery\n./a//in.png,1,True\nin.png,false,\n",
        b"\x01{\"path\":\"in.png\",\"label\":\"x\"}\n{\"path\":\"a/../../outside.png\"}\n",
        b"\x01{\"file_name\":\"in.png\\u0000\",\"split\":\"gallery\"}\n{\"file_name\":\"in.png\"}\n",
    ];
    let mut all: Vec<Vec<u8>> = texts.map(<[u8]>::to_vec).into();
    all.push([b"\x02".as_slice(), &parquet(&["in.png", "../outside.png"])].concat());
    all
}

/// Each picture of a tar file lies in it, can be read, and is found again by its id.
fn archive(bytes: &[u8]) {
    let Some(gallery) = file(bytes, &["tar"]) else { return };
    let rules = [LabelRule::Folder, LabelRule::Column("label".to_owned())];
    for found in rules.into_iter().filter_map(|rule| scanned(gallery.clone(), rule)) {
        let ids: Vec<&str> = found.images.iter().map(|image| image.id.as_str()).collect();
        let again = Places { root: &gallery, images: None }.sources(&ids);
        for (image, again) in found.images.iter().zip(again) {
            assert!(image.id.starts_with("input.tar/") && !image.id.split('/').any(|part| part == ".."));
            let read = image.source.read().expect("it is there");
            assert_eq!(read.len() as u64, image.source.length().expect("known"));
            assert!(read.len() < bytes.len());
            // Of two of one name the first may have failed.
            let is_alone = !found.failures.iter().any(|failure| failure.path == image.id);
            assert!(!is_alone || again.as_ref() == Some(&image.source), "{}", image.id);
        }
    }
}

/// The three ways to write a name, classes of each kind, and members that are no files.
fn archives() -> Vec<Vec<u8>> {
    let long = format!("{}/1.png", "n".repeat(120));
    let members: [(&str, tar::EntryType, &[u8]); 8] = [
        ("a/1.png", tar::EntryType::Regular, b"\x89PNG one"),
        ("a/1.cls", tar::EntryType::Regular, b"7\n"),
        ("a/2.json", tar::EntryType::Regular, b"{\"label\": \"x\"}"),
        ("a/2.PNG", tar::EntryType::Regular, b"\x89PNG two"),
        (&long, tar::EntryType::Regular, b"\x89PNG three"),
        ("a/3.png", tar::EntryType::Symlink, b""),
        ("a", tar::EntryType::Directory, b""),
        ("a/4", tar::EntryType::Char, b""),
    ];
    let write = |header: fn() -> tar::Header| {
        let mut builder = tar::Builder::new(vec![0]);
        for (name, kind, content) in &members {
            let mut header = header();
            header.set_entry_type(*kind);
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, name, *content).expect("written");
        }
        builder.into_inner().expect("written")
    };
    let pax = |record: &str| {
        let mut builder = tar::Builder::new(vec![0]);
        for (kind, content) in
            [(tar::EntryType::XHeader, record.as_bytes()), (tar::EntryType::Regular, b"\x89PNG")]
        {
            let mut header = tar::Header::new_ustar();
            header.set_entry_type(kind);
            header.set_size(content.len() as u64);
            builder.append_data(&mut header, "p.png", content).expect("written");
        }
        builder.into_inner().expect("written")
    };
    vec![
        write(tar::Header::new_gnu),
        write(tar::Header::new_gnu)[..4000].to_vec(),
        pax("20 path=a/b\nc/5.png\n"),
        pax("9 size=4\n"),
        pax("28 size=9223372036854775808\n"),
    ]
}

/// A COCO file leads to pictures below its folder or to none.
fn coco(bytes: &[u8]) {
    let path = folder().join("lists/input.json");
    std::fs::write(&path, bytes).expect("writable");
    if let Some(found) = scanned(path, LabelRule::Folder) {
        are_below(&found);
    }
}

fn coco_files() -> Vec<Vec<u8>> {
    let texts: [&[u8]; 2] = [
        b"{\"images\":[{\"id\":1,\"file_name\":\"in.png\"},{\"id\":2,\"file_name\":\"../outside.png\"}],\"categories\":[{\"id\":1,\
          \"name\":\"x\"},{\"id\":2}],\"annotations\":[{\"image_id\":1,\"category_id\":1,\"area\":1e308,\"segmentation\":[[1]]},\
          {\"image_id\":1,\"category_id\":1,\"area\":1e308},{\"image_id\":1,\"category_id\":2,\"bbox\":[0,0,-1,2]}]}",
        b"{\"images\":[{\"id\":\"a\",\"file_name\":\"./a//in.png\"}],\"categories\":[],\"annotations\":[]}",
    ];
    texts.map(<[u8]>::to_vec).into()
}

/// A table of one column `path`.
fn parquet(paths: &[&str]) -> Vec<u8> {
    let column: arrow::array::ArrayRef = std::sync::Arc::new(arrow::array::StringArray::from(paths.to_vec()));
    let rows = arrow::array::RecordBatch::try_from_iter([("path", column)]).expect("valid");
    let mut bytes = Vec::new();
    let mut writer = parquet::arrow::ArrowWriter::try_new(&mut bytes, rows.schema(), None).expect("valid");
    writer.write(&rows).expect("written");
    writer.close().expect("written");
    bytes
}

/// What is read from a feature file is whole: a vector for each picture.
fn features(bytes: &[u8]) {
    let Some(file) = file(bytes, &["h5", "csv", "npy", "parquet"]) else { return };
    let Ok(batch) = exchange::read(&file) else { return };
    assert_eq!(batch.vectors.len(), batch.pictures.len() * batch.dim);
    assert_eq!(batch.norms.len(), batch.pictures.len());
}

fn feature_files() -> Vec<Vec<u8>> {
    let mut builder = hdf5_pure::FileBuilder::new();
    let vectors: Vec<u8> = [1.0f64, 0.0, 0.0, 1.0].iter().flat_map(|number| number.to_le_bytes()).collect();
    builder
        .create_dataset("dataset_1")
        .with_raw_data(hdf5_pure::make_f64_type(), vectors, 4)
        .with_shape(&[2, 2]);
    builder.create_dataset("dataset_2").with_ascii_strings(&["a.png", "b.png"]).expect("names");
    let mut h5 = Vec::new();
    builder.finish_to(&mut h5).expect("written");
    let npy = b"\x93NUMPY\x01\0\x46\0{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1), }          \n\0\0\x80\x3f";
    vec![
        [b"\0".as_slice(), &h5].concat(),
        b"\x01id,label,split,v0,v1\na.png,x,gallery,1.0,-0.5\n\"b\nc\",,query,1e-3,0.0\n".to_vec(),
        [b"\x02".as_slice(), npy].concat(),
        [b"\x03".as_slice(), &parquet(&["in.png"])].concat(),
    ]
}

/// A pipeline file is understood, or refused in words that say which file.
fn pipeline(bytes: &[u8]) {
    let file = folder().join("fuzz.toml");
    std::fs::write(&file, bytes).expect("writable");
    match PipelineConfig::load(&file, &[]) {
        Ok(config) => assert!(!config.evaluate.metrics.is_empty() && !config.evaluate.ks.contains(&0)),
        Err(error) => assert!(error.to_string().contains("fuzz.toml"), "{error}"),
    }
}

fn pipelines() -> Vec<Vec<u8>> {
    let quickstart = include_bytes!("../pipelines/quickstart.toml");
    let elastic = include_bytes!("../pipelines/elasticsearch.toml");
    vec![
        quickstart.to_vec(),
        elastic.to_vec(),
        b"[input]\ngallery = 'a'\nlabel = { regex = '^(.)' }\nmax_failures = '1%'\n[gate.l1]\n'P@1' = 0.5\n"
            .to_vec(),
    ]
}

/// The bytes as labels, ids and the run's name: what is no text of ours adds no markup to any output.
fn report(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let words: Vec<&str> = text.split('\u{1f}').take(4).collect();
    let hostile = render(&words);
    // As many different words, all harmless.
    let mut known: Vec<&str> = Vec::new();
    let plain: Vec<String> = words
        .iter()
        .map(|word| {
            let place = known.iter().position(|other| other == word).unwrap_or_else(|| {
                known.push(word);
                known.len() - 1
            });
            if word.is_empty() { String::new() } else { format!("w{place}") }
        })
        .collect();
    let plain = render(&plain.iter().map(String::as_str).collect::<Vec<_>>());
    // Longer words make other charts, so it is names of tags that are compared, not their number.
    let known = tags(&plain.html);
    let new: Vec<&str> = tags(&hostile.html).into_iter().filter(|tag| !known.contains(tag)).collect();
    assert!(new.is_empty(), "{new:?} from {words:?}");
    assert_eq!(hostile.html.matches("<script>").count(), 1);
    assert!(!hostile.markdown.contains(['\x1b', '\r', '\u{202e}']));
    assert_eq!(hostile.markdown.lines().count(), plain.markdown.lines().count(), "{words:?}");
    // Ours, and nothing, as in `p < 0.001`.
    let ours = ["", "details", "/details", "summary", "/summary"];
    assert!(tags(&hostile.markdown).iter().all(|tag| ours.contains(tag)), "{words:?}");
    assert!(!hostile.terminal.contains(|c: char| c.is_control() && c != '\n'));
}

/// What stands after each `<`, as far as it is a name.
fn tags(html: &str) -> BTreeSet<&str> {
    let name = |rest: &'_ str| {
        rest.find(|c: char| !c.is_ascii_alphanumeric() && !"/!".contains(c)).unwrap_or(rest.len())
    };
    html.split('<').skip(1).map(|rest| &rest[..name(rest)]).collect()
}

struct Rendered {
    html: String,
    markdown: String,
    terminal: String,
}

fn render(words: &[&str]) -> Rendered {
    let word = |i: usize| words[i % words.len()];
    let batch = |split: Split, count: usize| EmbeddingBatch {
        pictures: (0..count)
            .map(|i| Picture {
                id: format!("{i:02} {}", word(i)),
                split,
                label: Some(word(i)).filter(|label| !label.is_empty()).map(str::to_owned),
                sha256: format!("{}{i}", split.name()),
                pixel_sha256: String::new(),
                dhash: 0,
                width: 1,
                height: 1,
                format: "png".to_owned(),
            })
            .collect(),
        dim: 2,
        vectors: (0..count).flat_map(|i| [1.0, i as f32]).collect(),
        norms: vec![1.0; count],
    };
    let (gallery, queries) = (batch(Split::Gallery, 8), batch(Split::Query, 4));
    let mut index = Flat::new(true);
    index.create(2).expect("created");
    index.upsert(&gallery).expect("taken");
    index.commit().expect("committed");
    // One metric: bootstraps and comparisons take most of the time, and print no word from outside.
    let options = EvaluateOptions {
        metrics: vec![Metric::Cosine],
        modes: vec![Mode::HeldOut],
        ..EvaluateOptions::default()
    };
    let evaluation = evaluate::evaluate(&index, &gallery, &queries, &options).expect("evaluated");
    let report = RunReport::new(word(0), json!({ "note": word(1) }), vec![evaluation]);
    let written = |exporter: &dyn Exporter| {
        let mut bytes = Vec::new();
        exporter.write(&report, &mut bytes).expect("written");
        String::from_utf8(bytes).expect("UTF-8")
    };
    let xml = written(&Junit);
    let mut reader = quick_xml::Reader::from_str(&xml);
    while reader.read_event().expect("well-formed") != quick_xml::events::Event::Eof {}
    let back: RunReport = serde_json::from_str(&written(&Summary)).expect("JSON");
    assert_eq!(back.name, word(0));
    let pictures = Pictures { gallery: Path::new("gone"), queries: None, images: None, max_pixels: 1 };
    Rendered { html: written(&Html { pictures }), markdown: written(&Markdown), terminal: written(&Terminal) }
}

fn labels() -> Vec<Vec<u8>> {
    let words = [
        "</script><img src=x onerror=alert(1)>\u{1f}a|b\n# c\u{1f}\"'&amp;\u{1f}]]>",
        "\x1b[2J\u{1f}gpj.\u{202e}live\u{1f}**b** `c` [d](e) <f>",
        "plain\u{1f}plain\u{1f}other",
        "",
    ];
    words.map(|text| text.as_bytes().to_vec()).into()
}
