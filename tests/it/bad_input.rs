//! Every kind of bad picture, folder and manifest: one clear error or one failure row each, and nothing else is lost.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicBool;

use image::{DynamicImage, ImageFormat, RgbImage};
use imagedex::memory::Shares;
use imagedex::models::Resize;
use imagedex::stages::decode::{self, DecodeError, DecodeOptions, DecodedImage, Exif, PictureOptions};
use imagedex::stages::scan::{self, LabelRule, Scan, ScanError, ScanOptions, Seen, Split};
use proptest::prelude::*;

use crate::support::{Shop, cache, imagedex};

pub fn photo(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| image::Rgb([(x * 5) as u8, (y * 3) as u8, (x + y) as u8]))
}

pub fn encoded(image: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.into().write_to(&mut bytes, format).expect("encodes");
    bytes.into_inner()
}

fn decoded(bytes: &[u8]) -> Result<DecodedImage, DecodeError> {
    decode::decode(bytes, &DecodeOptions::default())
}

#[track_caller]
fn kind(bytes: &[u8]) -> &'static str {
    decoded(bytes).expect_err("no usable picture").kind()
}

/// A JPEG with these components, written by libjpeg.
fn jpeg(space: mozjpeg::ColorSpace, pixels: &[u8], width: usize, height: usize) -> Vec<u8> {
    let mut encoder = mozjpeg::Compress::new(space);
    encoder.set_size(width, height);
    encoder.set_quality(95.0);
    let mut encoder = encoder.start_compress(Vec::new()).expect("starts");
    encoder.write_scanlines(pixels).expect("writes");
    encoder.finish().expect("finishes")
}

fn scan(folder: &Path, label: LabelRule) -> Result<Scan, ScanError> {
    let options =
        ScanOptions { gallery: folder.to_owned(), queries: None, images: None, label, outside: false };
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(scan::scan(&options))
}

fn ids(scan: &Scan) -> Vec<&str> {
    scan.images.iter().map(|image| image.id.as_str()).collect()
}

#[test]
fn every_format_is_told_by_its_content() {
    let image = photo(40, 30);
    for (format, name) in [
        (ImageFormat::Png, "png"),
        (ImageFormat::Bmp, "bmp"),
        (ImageFormat::Tiff, "tiff"),
        (ImageFormat::WebP, "webp"),
    ] {
        let found = decoded(&encoded(image.clone(), format)).expect(name);
        assert_eq!((found.format, found.width, found.height), (name, 40, 30));
        assert_eq!(&found.rgb, image.as_raw(), "{name} is lossless here");
    }
    assert_eq!(decoded(&encoded(image.clone(), ImageFormat::Gif)).expect("gif").format, "gif");
    assert_eq!(decoded(&encoded(image, ImageFormat::Jpeg)).expect("jpeg").format, "jpeg");
}

#[test]
fn grey_alpha_and_sixteen_bits_become_plain_rgb() {
    let grey = image::GrayImage::from_fn(9, 9, |x, y| image::Luma([(x * 20 + y) as u8]));
    let found = decoded(&encoded(grey.clone(), ImageFormat::Png)).expect("grey");
    assert!(found.rgb.chunks(3).zip(grey.as_raw()).all(|(rgb, grey)| rgb == [*grey; 3]));

    let clear = image::RgbaImage::from_pixel(4, 4, image::Rgba([10, 20, 30, 0]));
    let found = decoded(&encoded(clear, ImageFormat::Png)).expect("alpha");
    assert_eq!(&found.rgb[..3], [10, 20, 30], "alpha is dropped, not blended");

    for format in [ImageFormat::Png, ImageFormat::Tiff] {
        let deep = image::ImageBuffer::from_pixel(4, 4, image::Rgb([0x12ff_u16, 0x8000, 0xffff]));
        let found = decoded(&encoded(DynamicImage::ImageRgb16(deep), format)).expect("16 bits");
        assert_eq!(&found.rgb[..3], [0x12, 0x80, 0xff], "the high byte");
    }
}

#[test]
fn cmyk_and_grey_jpeg_are_read_as_pillow_reads_them() {
    // Adobe's inverted inks: 255 is none. Pillow 13 gives these values for a flat picture of these inks.
    for (inks, rgb) in [
        ([255, 255, 255, 255], [255, 255, 255]),
        ([0, 255, 255, 255], [0, 255, 255]),
        ([255, 255, 255, 0], [0, 0, 0]),
    ] {
        let bytes = jpeg(mozjpeg::ColorSpace::JCS_CMYK, &inks.repeat(64), 8, 8);
        let found = decoded(&bytes).expect("cmyk");
        assert!(
            found.rgb.chunks(3).all(|p| p.iter().zip(rgb).all(|(a, b)| a.abs_diff(b) <= 2)),
            "{inks:?}: {:?}",
            &found.rgb[..3]
        );
    }
    // The same inks as YCCK, which is what Photoshop writes.
    let mut encoder = mozjpeg::Compress::new(mozjpeg::ColorSpace::JCS_CMYK);
    encoder.set_color_space(mozjpeg::ColorSpace::JCS_YCCK);
    encoder.set_size(8, 8);
    let mut encoder = encoder.start_compress(Vec::new()).expect("starts");
    encoder.write_scanlines(&[0, 255, 255, 255].repeat(64)).expect("writes");
    let found = decoded(&encoder.finish().expect("finishes")).expect("ycck");
    assert!(found.rgb.chunks(3).all(|p| p[0] < 6 && p[1] > 249 && p[2] > 249), "{:?}", &found.rgb[..3]);
    // Pillow's `convert("RGB")` of CMYK rounds like this: 255 - ink, times black, over 255.
    let bytes = jpeg(mozjpeg::ColorSpace::JCS_CMYK, &[200, 100, 50, 128].repeat(64), 8, 8);
    let found = decoded(&bytes).expect("cmyk");
    assert!(
        found.rgb.chunks(3).all(|p| p.iter().zip([100, 50, 25]).all(|(a, b)| a.abs_diff(b) <= 2)),
        "{:?}",
        &found.rgb[..3]
    );
    let found = decoded(&jpeg(mozjpeg::ColorSpace::JCS_GRAYSCALE, &[77; 64], 8, 8)).expect("grey");
    assert!(found.rgb.iter().all(|&value| value.abs_diff(77) <= 1));
}

#[test]
fn the_first_frame_of_an_animation_is_taken() {
    let mut bytes = Vec::new();
    let mut encoder = image::codecs::gif::GifEncoder::new(&mut bytes);
    for shade in [0, 255] {
        let frame = image::RgbaImage::from_pixel(6, 6, image::Rgba([shade, shade, shade, 255]));
        encoder.encode_frame(image::Frame::new(frame)).expect("encodes");
    }
    drop(encoder);
    assert_eq!(decoded(&bytes).expect("gif").rgb[0], 0);
}

#[test]
fn a_picture_is_turned_only_on_request() {
    let mut bytes = Vec::new();
    let image = photo(20, 10);
    let mut encoder = image::codecs::jpeg::JpegEncoder::new(&mut bytes);
    // TIFF header, one entry: tag 0x0112 (orientation), SHORT, 6 = turn right.
    let exif = [b"II*\0\x08\0\0\0\x01\0".as_slice(), b"\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"].concat();
    image::ImageEncoder::set_exif_metadata(&mut encoder, exif).expect("has EXIF");
    encoder.encode_image(&image).expect("encodes");
    let plain = decoded(&bytes).expect("jpeg");
    assert_eq!((plain.width, plain.height), (20, 10));
    let apply = DecodeOptions { exif: Exif::Apply, ..DecodeOptions::default() };
    let turned = decode::decode(&bytes, &apply).expect("jpeg");
    assert_eq!((turned.width, turned.height), (10, 20));
    assert_eq!(&turned.rgb[27..30], &plain.rgb[..3], "top left is now top right");
}

#[test]
fn each_kind_of_damage_has_its_name() {
    let whole = encoded(photo(64, 64), ImageFormat::Jpeg);
    assert_eq!(kind(b""), "empty");
    assert_eq!(kind(b"hello, this is a text"), "not_a_picture");
    assert_eq!(kind(&whole[..whole.len() / 2]), "truncated");
    assert_eq!(kind(&whole[..20]), "truncated");
    assert_eq!(kind(&whole[..whole.len() - 1]), "truncated", "without its end marker");
    let mut endless = whole[..whole.len() - 2].to_vec();
    let scan = whole.windows(2).position(|marker| marker == [0xff, 0xda]).expect("a scan");
    endless.extend(whole[scan..scan + 14].repeat(501));
    assert_eq!(kind(&endless), "corrupt", "hundreds of scans");
    let mut trailing = whole.clone();
    trailing.extend(b"what cameras append");
    assert_eq!(decoded(&trailing).expect("fine").rgb, decoded(&whole).expect("fine").rgb);
    for format in [ImageFormat::Png, ImageFormat::Bmp, ImageFormat::Tiff, ImageFormat::WebP, ImageFormat::Gif]
    {
        let whole = encoded(photo(64, 64), format);
        let found = kind(&whole[..whole.len() / 2]);
        assert!(["truncated", "corrupt"].contains(&found), "half a {format:?}: {found}");
    }
}

#[test]
fn a_header_of_thirty_thousand_squared_pixels_is_refused_unread() {
    let mut png = encoded(photo(8, 8), ImageFormat::Png);
    png[16..24].copy_from_slice(&[0, 0, 0x75, 0x30, 0, 0, 0x75, 0x30]);
    let crc = crc32(&png[12..29]);
    png[29..33].copy_from_slice(&crc.to_be_bytes());
    assert_eq!(kind(&png), "too_large");
    let mut jpeg = encoded(photo(8, 8), ImageFormat::Jpeg);
    let frame = jpeg.windows(2).position(|marker| marker == [0xff, 0xc0]).expect("a frame header");
    jpeg[frame + 5..frame + 9].copy_from_slice(&[0x75, 0x30, 0x75, 0x30]);
    assert_eq!(kind(&jpeg), "too_large");
    let error = decoded(&jpeg).expect_err("too large").to_string();
    assert!(error.contains("30000 x 30000") && error.contains("input.max_pixels"), "{error}");
}

/// The checksum of a PNG chunk.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| crc >> 1 ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    })
}

#[test]
fn a_folder_is_walked_whatever_its_names() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let png = encoded(photo(8, 8), ImageFormat::Png);
    let names =
        ["a b/it's \"here\".PNG", "new\nline/ü.jpg", "x.jpg/inner.png", "no-ending/picture", "top.png"];
    for name in names {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().expect("has one")).expect("writable");
        std::fs::write(path, &png).expect("writable");
    }
    std::fs::write(folder.path().join("notes.txt"), "no picture").expect("writable");
    std::fs::write(folder.path().join("LICENSE"), "no picture either").expect("writable");
    std::fs::write(folder.path().join(".hidden.png"), &png).expect("writable");
    std::fs::create_dir(folder.path().join(".git")).expect("writable");
    std::fs::write(folder.path().join(".git/1.png"), &png).expect("writable");
    let found = scan(folder.path(), LabelRule::Folder).expect("has pictures");
    let mut expected = names.to_vec();
    expected.sort();
    assert_eq!(ids(&found), expected);
    assert_eq!(found.images[3].label, None, "top.png lies in no class");
    let skipped: Vec<_> = found.skipped.iter().map(|(kind, count)| (kind.as_str(), *count)).collect();
    assert_eq!(skipped, [("hidden", 2), ("no ending", 1), ("txt", 1)]);
    assert!(found.failures.is_empty());
}

#[test]
fn what_is_meant_to_be_a_picture_is_never_dropped_in_silence() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(folder.path().join("1.png"), encoded(photo(8, 8), ImageFormat::Png)).expect("writable");
    std::fs::write(folder.path().join("raw.CR2"), b"II*\0").expect("writable");
    std::fs::write(folder.path().join("phone.heic"), b"\0\0\0\x18ftypheic\0\0\0\0").expect("writable");
    let found = scan(folder.path(), LabelRule::None).expect("has pictures");
    assert_eq!(ids(&found), ["1.png", "phone.heic"], "the content of the second decides");
    assert_eq!(
        (found.failures[0].path.as_str(), found.failures[0].kind.as_str()),
        ("raw.CR2", "unsupported")
    );
    assert_eq!(kind(b"\0\0\0\x18ftypheic\0\0\0\0"), "unsupported");
    assert_eq!(kind(b"BMW is no bitmap, though it begins like one"), "not_a_picture");
}

#[cfg(unix)]
#[test]
fn link_loops_dead_links_and_bad_names_are_failures() {
    use std::os::unix::ffi::OsStrExt;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let png = encoded(photo(8, 8), ImageFormat::Png);
    std::fs::create_dir(folder.path().join("a")).expect("writable");
    std::fs::write(folder.path().join("a/1.png"), &png).expect("writable");
    std::os::unix::fs::symlink(folder.path(), folder.path().join("a/loop")).expect("writable");
    // Not above the walk's root alone: through it, each picture would be found twice.
    std::os::unix::fs::symlink("../..", folder.path().join("a/up")).expect("writable");
    std::os::unix::fs::symlink("nowhere.png", folder.path().join("a/dead.png")).expect("writable");
    std::fs::write(folder.path().join(std::ffi::OsStr::from_bytes(b"a/\xff.png")), &png).expect("writable");
    let found = scan(folder.path(), LabelRule::Folder).expect("has pictures");
    assert_eq!(ids(&found), ["a/1.png"]);
    let kinds: Vec<_> =
        found.failures.iter().map(|failure| (failure.path.as_str(), failure.kind.as_str())).collect();
    assert_eq!(
        kinds,
        [
            ("a/\\xff.png", "name"),
            ("a/dead.png", "unreadable"),
            ("a/loop", "link_loop"),
            ("a/up", "link_loop"),
        ]
    );
}

#[test]
fn a_folder_without_pictures_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let error = scan(folder.path(), LabelRule::Folder).expect_err("empty").to_string();
    assert!(
        error.contains("holds no pictures") && error.contains(&*folder.path().to_string_lossy()),
        "{error}"
    );
    std::fs::write(folder.path().join("a.txt"), "text").expect("writable");
    let error = scan(folder.path(), LabelRule::Folder).expect_err("no pictures").to_string();
    assert!(error.contains("1 other files"), "{error}");
    let error = scan(&folder.path().join("missing"), LabelRule::Folder).expect_err("missing").to_string();
    assert!(error.contains("cannot be read"), "{error}");
    let error = scan(&folder.path().join("a.txt"), LabelRule::Folder).expect_err("a file").to_string();
    assert!(error.contains("is not a folder, nor a .csv"), "{error}");
}

#[test]
fn a_manifest_may_hold_both_sides_and_lie_anywhere() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let place = folder.path().join("my [lists]*, 100%");
    std::fs::create_dir(&place).expect("writable");
    let manifest = place.join("a b?.csv");
    let names = ["q.png", "line\nbreak.png", "say \"hi\".png", "ü, comma.png"];
    let mut text = csv::Writer::from_writer(Vec::new());
    text.write_record(["label", "filename", "split"]).expect("writable");
    for name in names {
        photo(8, 8).save(place.join(name)).expect("writable");
        let split = if name == "q.png" { "query" } else { "gallery" };
        text.write_record(["a", place.join(name).to_str().expect("UTF-8"), split]).expect("writable");
    }
    std::fs::write(&manifest, text.into_inner().expect("flushed")).expect("writable");
    let options = ScanOptions {
        gallery: manifest.clone(),
        queries: Some(manifest),
        images: None,
        label: LabelRule::Folder,
        outside: false,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let found = runtime.block_on(scan::scan(&options)).expect("valid");
    assert_eq!(ids(&found), ["line\nbreak.png", "say \"hi\".png", "ü, comma.png", "q.png"]);
    assert!(found.failures.is_empty(), "read once: {:?}", found.failures);
}

#[test]
fn a_parquet_manifest_is_read() {
    use parquet::arrow::ArrowWriter;
    let folder = tempfile::tempdir().expect("a temporary folder");
    photo(8, 8).save(folder.path().join("1.png")).expect("writable");
    let path: arrow::array::ArrayRef =
        std::sync::Arc::new(arrow::array::StringArray::from(vec!["1.png", "2.png"]));
    let label: arrow::array::ArrayRef =
        std::sync::Arc::new(arrow::array::Int64Array::from(vec![Some(7), None]));
    let rows = arrow::array::RecordBatch::try_from_iter([("path", path), ("label", label)]).expect("valid");
    let manifest = folder.path().join("list.parquet");
    let file = std::fs::File::create(&manifest).expect("writable");
    let mut writer = ArrowWriter::try_new(file, rows.schema(), None).expect("valid");
    writer.write(&rows).expect("writable");
    writer.close().expect("writable");
    let found = scan(&manifest, LabelRule::None).expect("valid");
    assert_eq!((ids(&found), found.images[0].label.as_deref()), (vec!["1.png"], Some("7")));
    assert_eq!(found.failures[0].kind, "missing");
    let whole = std::fs::read(&manifest).expect("written");
    std::fs::write(&manifest, "no parquet").expect("writable");
    assert!(matches!(scan(&manifest, LabelRule::None), Err(ScanError::Manifest { .. })));

    // Some damage makes the reader panic: that is an error as well, which names the file.
    let mut panics = 0;
    for (at, bits) in (0..whole.len()).step_by(4).flat_map(|at| [0x01, 0xff].map(|bits| (at, bits))) {
        let mut damaged = whole.clone();
        damaged[at] ^= bits;
        std::fs::write(&manifest, damaged).expect("writable");
        match scan(&manifest, LabelRule::None) {
            Err(ScanError::Manifest { reason, .. }) if reason == imagedex::panics::DAMAGED => panics += 1,
            Ok(_) | Err(ScanError::Manifest { .. } | ScanError::Empty { .. }) => {}
            Err(error) => panic!("byte {at}: {error}"),
        }
    }
    assert!(panics > 0, "no damage made the reader panic: does it need to be caught any longer?");
}

#[test]
fn a_folder_that_goes_away_is_not_one_whose_pictures_were_deleted() {
    type Change = fn(&Path);
    let changes: [(Change, Option<&str>); 5] = [
        (|gallery| std::fs::remove_file(gallery.join("a/1.png")).expect("removed"), None),
        (
            |gallery| std::fs::rename(gallery, gallery.with_file_name("away")).expect("renamed"),
            Some("gallery"),
        ),
        (
            |gallery| std::fs::rename(gallery.join("a"), gallery.join("z")).expect("renamed"),
            Some("gallery/a"),
        ),
        (
            // What an unmounted file system leaves: a folder of the same name, which is another one.
            |gallery| {
                std::fs::rename(gallery, gallery.with_file_name("away")).expect("renamed");
                std::fs::create_dir_all(gallery.join("a")).expect("made");
            },
            Some("gallery"),
        ),
        (
            |gallery| {
                std::fs::rename(gallery.join("a"), gallery.with_file_name("away")).expect("renamed");
                std::fs::create_dir(gallery.join("a")).expect("made");
            },
            Some("gallery/a"),
        ),
    ];
    for (change, missed) in changes {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let gallery = folder.path().join("gallery");
        for name in ["a/1.png", "a/2.png", "b/3.png"] {
            std::fs::create_dir_all(gallery.join(name).parent().expect("a folder")).expect("made");
            photo(8, 8).save(gallery.join(name)).expect("writable");
        }
        let found = scan(&gallery, LabelRule::None).expect("has pictures");
        change(&gallery);
        let (_, failures) = scan::hash(found.images, &AtomicBool::new(false));
        assert!(!failures.is_empty());
        match (found.folders.check(), missed) {
            (Ok(()), None) => {}
            (Err(ScanError::Vanished { what: "gallery", path }), Some(missed)) => {
                assert_eq!(path, folder.path().join(missed));
            }
            (checked, missed) => panic!("{checked:?} where {missed:?} went away"),
        }
    }
}

/// Root may read everything, so there this test has nothing to see.
#[cfg(unix)]
#[test]
fn what_may_not_be_read_is_a_failure() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (closed, secret) = (folder.path().join("closed"), folder.path().join("secret.png"));
    photo(8, 8).save(folder.path().join("1.png")).expect("writable");
    photo(8, 8).save(&secret).expect("writable");
    std::fs::create_dir(&closed).expect("writable");
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o000)).expect("mine");
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o000)).expect("mine");
    let readable = std::fs::File::open(&secret).is_ok();
    let found = scan(folder.path(), LabelRule::None).expect("has pictures");
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o700)).expect("mine");
    if readable {
        eprintln!("this user may read everything: nothing was tested");
        return;
    }
    assert_eq!((found.failures[0].path.as_str(), found.failures[0].kind.as_str()), ("closed", "unreadable"));
    let (seen, failures) = scan::hash(found.images, &AtomicBool::new(false));
    assert_eq!(
        (seen.len(), failures[0].path.as_str(), failures[0].kind.as_str()),
        (1, "secret.png", "unreadable")
    );
}

#[test]
fn manifests_say_what_is_wrong_with_them() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let png = encoded(photo(8, 8), ImageFormat::Png);
    for name in ["1.png", "2.png"] {
        std::fs::write(folder.path().join(name), &png).expect("writable");
    }
    let manifest = folder.path().join("list.csv");
    let read = |text: &str| {
        std::fs::write(&manifest, text).expect("writable");
        scan(&manifest, LabelRule::None)
    };
    let found =
        read("path,label,split\n2.png,007,query\n./1.png,,train\nmissing.png,b,train\n").expect("valid");
    let rows: Vec<_> = found.images.iter().map(|i| (i.id.as_str(), i.split, i.label.as_deref())).collect();
    assert_eq!(rows, [("1.png", Split::Gallery, None), ("2.png", Split::Query, Some("007"))]);
    assert_eq!(found.unlabelled(), 1);
    assert_eq!(
        (found.failures[0].path.as_str(), found.failures[0].kind.as_str()),
        ("missing.png", "missing")
    );

    let found = read("file_name,label,is_query,is_gallery\n1.png,a,true,true\n2.png,b,0,1\n").expect("valid");
    assert_eq!(found.images.len(), 3, "1.png stands on both sides");

    // OML's training rows carry no flags; they are neither searched in nor searched for.
    let found = read("path,label,split,is_query,is_gallery\n1.png,a,train,,\n2.png,b,validation,True,True\n")
        .expect("valid");
    assert_eq!((ids(&found), found.skipped.len()), (vec!["2.png", "2.png"], 1));

    for (text, expected) in [
        ("", "no column `path`"),
        ("path,label\n3.png,a\n", "the file that row 1 names is missing"),
        ("path,split\n1.png,test\n", "1 rows of the other split"),
        ("path,label\n1.png,a,b\n", "manifest"),
        ("file,label\n1.png,a\n", "no column `path`"),
        ("path,split\n1.png,validation\n", "split `validation` is neither"),
        ("path\n", "holds no pictures"),
    ] {
        let error = read(text).expect_err(text).to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }

    let found = read("path,label\n1.png,a\n2.png,b\n./1.png,c\n").expect("valid");
    assert_eq!(found.images.len(), 2);
    assert_eq!(found.images[0].label.as_deref(), Some("a"), "the first row counts");
    let failure = &found.failures[0];
    assert_eq!((failure.path.as_str(), failure.kind.as_str()), ("1.png", "duplicate"));
    assert!(failure.reason.contains("(a), not c"), "{}", failure.reason);

    let lines = folder.path().join("list.jsonl");
    std::fs::write(
        &lines,
        "{\"path\": \"1.png\", \"label\": \"a\"}\n{\"path\": \"2.png\", \"label\": \"b\"}\n",
    )
    .expect("writable");
    assert_eq!(ids(&scan(&lines, LabelRule::None).expect("valid")), ["1.png", "2.png"]);
    std::fs::write(&lines, "{\"path\": \n").expect("writable");
    assert!(matches!(scan(&lines, LabelRule::None), Err(ScanError::Manifest { .. })));
}

#[test]
fn batches_are_the_same_at_any_thread_count() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for number in 0..37 {
        let path = folder.path().join(format!("{number:02}.png"));
        photo(20 + number, 30).save(&path).expect("writable");
    }
    std::fs::write(folder.path().join("05.png"), b"broken").expect("writable");
    std::fs::write(folder.path().join("06.png"), b"").expect("writable");
    let found = scan(folder.path(), LabelRule::None).expect("has pictures");
    let go = AtomicBool::new(false);
    let (seen, failures) = scan::hash(found.images, &go);
    assert_eq!(failures.len(), 1, "the empty file");
    let collect = |threads| {
        let options = PictureOptions {
            decode: DecodeOptions::default(),
            side: 16,
            resize: Resize::Bilinear,
            batch: 8,
            threads,
            shares: Shares::default(),
        };
        let mut all = Vec::new();
        decode::batches(&seen, &options, &go, |decoded| {
            all.push(decoded);
            true
        });
        all
    };
    let one = collect(1);
    assert_eq!(one.iter().map(|d| d.batch.pictures.len()).collect::<Vec<_>>(), [8, 8, 8, 8, 3]);
    assert_eq!(one.iter().flat_map(|d| &d.failures).count(), 1);
    for threads in [2, 5] {
        let many = collect(threads);
        let flat = |all: &[decode::Decoded]| {
            all.iter().map(|d| (d.batch.pictures.clone(), d.batch.pixels.clone())).collect::<Vec<_>>()
        };
        assert_eq!(flat(&one), flat(&many), "{threads} threads");
    }
    let mut count = 0;
    let options = PictureOptions {
        decode: DecodeOptions::default(),
        side: 16,
        resize: Resize::Nearest,
        batch: 8,
        threads: 2,
        shares: Shares::default(),
    };
    decode::batches(&seen, &options, &go, |_| {
        count += 1;
        false
    });
    assert_eq!(count, 1, "a receiver that goes away ends it");
    decode::batches(&seen, &options, &AtomicBool::new(true), |_| panic!("stopped before the first batch"));
}

#[test]
fn a_file_that_vanished_since_the_scan_is_a_failure() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    photo(8, 8).save(folder.path().join("1.png")).expect("writable");
    let found = scan(folder.path(), LabelRule::None).expect("has pictures");
    let go = AtomicBool::new(false);
    let (seen, _): (Vec<Seen>, _) = scan::hash(found.images, &go);
    std::fs::remove_file(folder.path().join("1.png")).expect("removable");
    let options = PictureOptions {
        decode: DecodeOptions::default(),
        side: 16,
        resize: Resize::Nearest,
        batch: 8,
        threads: 1,
        shares: Shares::default(),
    };
    let mut failures = Vec::new();
    decode::batches(&seen, &options, &go, |decoded| {
        failures.extend(decoded.failures);
        true
    });
    assert_eq!((failures.len(), failures[0].stage.as_str()), (1, "read"));
}

#[test]
fn a_file_that_changed_since_the_scan_carries_the_hash_of_what_was_decoded() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("1.png");
    photo(8, 8).save(&path).expect("writable");
    let found = scan(folder.path(), LabelRule::None).expect("has pictures");
    let go = AtomicBool::new(false);
    let (seen, _) = scan::hash(found.images, &go);
    photo(9, 9).save(&path).expect("writable");
    let options = PictureOptions {
        decode: DecodeOptions::default(),
        side: 16,
        resize: Resize::Nearest,
        batch: 8,
        threads: 1,
        shares: Shares::default(),
    };
    let mut pictures = Vec::new();
    decode::batches(&seen, &options, &go, |decoded| {
        pictures.extend(decoded.batch.pictures);
        true
    });
    assert_ne!(pictures[0].sha256, seen[0].sha256);
    assert_eq!(pictures[0].sha256, scan::sha256_hex(&std::fs::read(&path).expect("readable")));
    assert_eq!(pictures[0].width, 9);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever bytes come, the answer is a picture or an error.
    #[test]
    fn damaged_bytes_never_panic(
        format in prop::sample::select(vec![ImageFormat::Jpeg, ImageFormat::Png, ImageFormat::Gif, ImageFormat::Bmp, ImageFormat::Tiff, ImageFormat::WebP]),
        hits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = encoded(photo(24, 17), format);
        for (place, value) in hits {
            let place = place.index(bytes.len());
            bytes[place] = value;
        }
        let options = DecodeOptions { max_pixels: 1_000_000, ..DecodeOptions::default() };
        let _ = decode::decode(&bytes, &options);
        bytes.truncate(cut.index(bytes.len()));
        let _ = decode::decode(&bytes, &options);
    }
}

#[test]
fn a_table_that_an_interrupted_extract_left_is_not_loaded_as_if_it_were_whole() {
    let shop = Shop::new();
    for i in 0..6 {
        shop.picture(&format!("gallery/{}/{i}.png", ["cat", "dog"][i % 2]), i as u32 + 1);
    }
    shop.pipeline("[input]\ngallery = 'gallery'\n[model]\nprecision = 'int8'\nprovider = 'openvino'\n");
    shop.imagedex("run").exits(0);
    // As a run leaves it that was stopped after four pictures of ten.
    let file = shop.path("runs/shop/run.json");
    let mut record = shop.run_json();
    record["exit_code"] = 130.into();
    record["books"]["scanned"] = 10.into();
    std::fs::write(&file, record.to_string()).expect("written");
    for command in ["load", "evaluate"] {
        shop.imagedex(command)
            .exits(2)
            .complains("was interrupted: 6 of 10 pictures are stored")
            .complains("imagedex extract");
    }
    shop.imagedex("run").exits(0);
    shop.imagedex("load").exits(0);
}

#[test]
fn a_table_that_a_killed_extract_left_is_not_loaded_as_if_it_were_whole() {
    let shop = Shop::new();
    for i in 0..6 {
        shop.picture(&format!("gallery/{}/{i}.png", ["cat", "dog"][i % 2]), i as u32 + 1);
    }
    shop.pipeline("[input]\ngallery = 'gallery'\n[model]\nprecision = 'int8'\nprovider = 'openvino'\n");
    for stored in [0, 6] {
        shop.picture(&format!("gallery/cat/after-{stored}.png"), 50 + stored);
        let mut run = Command::new(env!("CARGO_BIN_EXE_imagedex"))
            .arg("extract")
            .arg(shop.path("shop.toml"))
            .env("IMAGEDEX_CACHE", cache())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let lines = BufReader::new(run.stderr.take().expect("piped")).lines();
        let line = lines.map_while(Result::ok).find(|line| line.contains("embedding"));
        run.kill().expect("killed");
        assert!(
            line.is_some() && !run.wait().expect("ended").success(),
            "it was done before it could be killed"
        );
        for command in ["load", "evaluate"] {
            shop.imagedex(command).exits(2).complains(&format!("was interrupted: {stored} of "));
        }
        std::fs::remove_file(shop.path(&format!("gallery/cat/after-{stored}.png"))).expect("it is there");
        shop.imagedex("run").exits(0);
        shop.imagedex("load").exits(0);
    }
}

#[test]
fn a_run_that_stored_nothing_ties_the_folder_to_no_settings() {
    let shop = Shop::new();
    shop.picture("gallery/cat/1.png", 1);
    shop.picture("gallery/cat/2.png", 2);
    shop.pipeline("[input]\ngallery = 'gallery'\n[model]\nprecision = 'int8'\nprovider = 'cpu'\n");
    let pipeline = shop.path("shop.toml").display().to_string();
    imagedex(["run", &pipeline, "--set", "runtime.library=/etc/passwd"]).exits(4);
    imagedex(["run", &pipeline, "--set", "model.provider=openvino"]).exits(0);
    // Now there is something in it.
    imagedex(["run", &pipeline]).exits(2).complains("made with other settings");
}

#[test]
fn standard_error_that_takes_nothing_changes_no_exit_code() {
    let full = || std::fs::File::options().write(true).open("/dev/full").expect("a full device");
    let mut program = std::process::Command::new(env!("CARGO_BIN_EXE_imagedex"));
    let status = program.args(["run", "no/such.toml"]).stderr(full()).status().expect("runs");
    assert_eq!(status.code(), Some(2));
    let mut program = std::process::Command::new(env!("CARGO_BIN_EXE_imagedex"));
    let output = program.args(["completions", "bash"]).stdout(full()).output().expect("runs");
    assert_eq!(output.status.code(), Some(4));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("standard output cannot be written to: No space left"), "{said}");
}
