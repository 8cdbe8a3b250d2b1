//! SQL written from an operator's SQL, with the way back: from a character Postgres complains about to the byte of
//! the file that it came from.

/// SQL that remembers which part of the command each part of it came from.
#[derive(Default)]
pub(super) struct Sql {
    pub(super) text: String,
    chars: usize,
    pieces: Vec<Piece>,
}

struct Piece {
    /// Its first character in the SQL.
    start: usize,
    /// The byte of the command that it stands for.
    offset: usize,
    /// The text, if it is the command's own.
    own: Option<String>,
}

impl Sql {
    /// Appends a part of the command, which begins at this byte of it.
    pub(super) fn push_source(&mut self, text: &str, offset: usize) {
        self.append(text, offset, Some(text.to_owned()));
    }

    /// Appends something else, which stands for what begins at this byte.
    pub(super) fn push(&mut self, text: &str, offset: usize) {
        self.append(text, offset, None);
    }

    fn append(&mut self, text: &str, offset: usize, own: Option<String>) {
        self.pieces.push(Piece { start: self.chars, offset, own });
        self.text.push_str(text);
        self.chars += text.chars().count();
    }

    /// The byte of the command that this character stands for.
    pub(super) fn source_offset(&self, character: usize) -> usize {
        let Some(piece) = self.pieces.iter().rev().find(|piece| piece.start <= character) else { return 0 };
        let within = piece
            .own
            .as_ref()
            .map_or(0, |text| text.char_indices().nth(character - piece.start).map_or(text.len(), |(byte, _)| byte));
        piece.offset + within
    }
}
