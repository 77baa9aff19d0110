//! What every HTML page of ours is made of: a frame that needs nothing but itself, escaped text, embedded thumbnails.
//!
//! File names and labels come from outside, and a page is opened in somebody's browser. So text goes through [`escape`],
//! in element and in (quoted) attribute alike; and should that ever be forgotten, the page's own policy still forbids
//! scripts and whatever would come over the network.

use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::RgbImage;
use image::codecs::jpeg::JpegEncoder;

use crate::stages::decode::{self, DecodeError, DecodeOptions, Exif};

/// Longer side of a thumbnail in pixels: sharp on a dense screen at the 160 that [`STYLE`] shows.
const THUMBNAIL: u32 = 320;
const JPEG_QUALITY: u8 = 80;

const STYLE: &str = "
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; }
body { max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem; padding: 0; }
figure { width: 10rem; margin: 0; overflow-wrap: anywhere; }
figure img, figure .none { width: 10rem; height: 10rem; object-fit: contain; border: 1px solid #8886; border-radius: 6px; }
figure .none { display: grid; place-items: center; padding: 0.5rem; box-sizing: border-box; font-size: 0.8rem; opacity: 0.7; }
figcaption small { display: block; opacity: 0.7; }
";

/// A whole page. `title` is text, `body` is HTML.
pub fn page(title: &str, body: &str) -> String {
    let title = escape(title);
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">\n\
         <title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n{body}</body>\n</html>\n"
    )
}

/// A picture with lines of text below it, the first of them in bold. A picture that cannot be shown is replaced by the reason.
pub fn figure(picture: &Result<String, String>, lines: &[&str]) -> String {
    let mut html = match picture {
        Ok(uri) => format!("<figure><img src=\"{}\" alt=\"\">", escape(uri)),
        Err(reason) => format!("<figure><div class=\"none\">{}</div>", escape(reason)),
    };
    html += "<figcaption>";
    for (i, line) in lines.iter().enumerate() {
        let tag = if i == 0 { "strong" } else { "small" };
        // Writing to a string cannot fail.
        let _ = write!(html, "<{tag}>{}</{tag}>", escape(line));
    }
    html + "</figcaption></figure>\n"
}

/// A file's picture as a small `data:` URI, turned as its EXIF orientation says.
///
/// # Errors
/// See [`decode::decode`].
pub fn thumbnail(bytes: &[u8], max_pixels: u64) -> Result<String, DecodeError> {
    let picture = decode::decode(bytes, &DecodeOptions { exif: Exif::Apply, max_pixels })?;
    let corrupt = || DecodeError::Corrupt("its size and its pixels do not agree".into());
    let mut picture = RgbImage::from_raw(picture.width, picture.height, picture.rgb).ok_or_else(corrupt)?;
    let longer = picture.width().max(picture.height());
    if longer > THUMBNAIL {
        let scaled = |side: u32| (u64::from(side) * u64::from(THUMBNAIL) / u64::from(longer)).max(1) as u32;
        picture = image::imageops::thumbnail(&picture, scaled(picture.width()), scaled(picture.height()));
    }
    let mut jpeg = Vec::new();
    JpegEncoder::new_with_quality(&mut jpeg, JPEG_QUALITY)
        .encode_image(&picture)
        .map_err(|error| DecodeError::Corrupt(error.to_string()))?;
    Ok(format!("data:image/jpeg;base64,{}", STANDARD.encode(jpeg)))
}

/// Text for an element, or for an attribute in quotes. Control characters, which could hide what follows, become �.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&#39;",
            '\n' | '\r' => escaped.push('↵'),
            c if c.is_control() => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use image::ImageFormat;

    use super::*;

    fn png(width: u32, height: u32) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        RgbImage::from_fn(width, height, |x, y| image::Rgb([x as u8, y as u8, 128]))
            .write_to(&mut bytes, ImageFormat::Png)
            .unwrap();
        bytes.into_inner()
    }

    #[test]
    fn hostile_text_stays_text() {
        let hostile = "\"><img src=x onerror='alert(1)'>&\0\n";
        let safe = "&quot;&gt;&lt;img src=x onerror=&#39;alert(1)&#39;&gt;&amp;\u{fffd}↵";
        assert_eq!(escape(hostile), safe);
        let missing = Err(hostile.to_owned());
        for html in [page(hostile, ""), figure(&missing, &[hostile]), figure(&Ok(hostile.into()), &[])] {
            assert!(!html.contains("<img src=x") && html.contains(safe), "{html}");
        }
    }

    #[test]
    fn a_thumbnail_keeps_its_shape_and_is_small() {
        let shape = |bytes: &[u8]| {
            let uri = thumbnail(bytes, u64::MAX).unwrap();
            let jpeg = STANDARD.decode(uri.strip_prefix("data:image/jpeg;base64,").unwrap()).unwrap();
            let image = image::load_from_memory_with_format(&jpeg, ImageFormat::Jpeg).unwrap();
            (image.width(), image.height())
        };
        assert_eq!(shape(&png(640, 320)), (320, 160));
        assert_eq!(shape(&png(32, 20)), (32, 20), "a small one is not enlarged");
        assert_eq!(shape(&png(2000, 1)), (320, 1));
        assert!(matches!(thumbnail(b"no picture", u64::MAX), Err(DecodeError::NotAPicture)));
        assert!(matches!(thumbnail(&png(40, 40), 100), Err(DecodeError::TooLarge { .. })));
    }
}
