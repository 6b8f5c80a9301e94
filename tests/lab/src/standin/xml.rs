//! Writing XML, as much as is needed.

use std::fmt::Display;

/// A growing document.
#[derive(Default)]
pub(super) struct Xml(pub(super) String);

impl Xml {
    /// `<name>text</name>`, escaped.
    pub(super) fn leaf(&mut self, name: &str, text: impl Display) {
        self.open(name);
        escape(&text.to_string(), &mut self.0);
        self.close(name);
    }

    /// `<name>…</name>` around what `inner` writes.
    pub(super) fn node(&mut self, name: &str, inner: impl FnOnce(&mut Self)) {
        self.open(name);
        inner(self);
        self.close(name);
    }

    /// `<name/>`.
    pub(super) fn empty(&mut self, name: &str) {
        self.0.push('<');
        self.0.push_str(name);
        self.0.push_str("/>");
    }

    fn open(&mut self, name: &str) {
        self.0.push('<');
        self.0.push_str(name);
        self.0.push('>');
    }

    fn close(&mut self, name: &str) {
        self.0.push_str("</");
        self.0.push_str(name);
        self.0.push('>');
    }
}

fn escape(text: &str, to: &mut String) {
    for c in text.chars() {
        match c {
            '&' => to.push_str("&amp;"),
            '<' => to.push_str("&lt;"),
            '>' => to.push_str("&gt;"),
            '"' => to.push_str("&quot;"),
            '\r' => to.push_str("&#xD;"),
            _ => to.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_leave_its_element() {
        let mut xml = Xml::default();
        xml.node("a", |xml| xml.leaf("b", "</b>&\"\r\n"));
        assert_eq!(xml.0, "<a><b>&lt;/b&gt;&amp;&quot;&#xD;\n</b></a>");
    }
}
