//! What the harnesses inherit from CPython, bit for bit: `random.Random` with an integer seed, and the string methods
//! whose Rust counterparts differ. `tasks/protocol.md`, sections 1 and 8; CPython's `Lib/random.py` and `_randommodule.c`.

use std::collections::HashSet;

const WORDS: usize = 624;

/// `random.Random(seed)`: MT19937 (Matsumoto and Nishimura, 1998), seeded by `init_by_array`.
#[derive(Clone)]
pub struct Random {
    state: [u32; WORDS],
    index: usize,
}

impl Random {
    /// Seeded by the words of `|seed|`, least significant first.
    pub fn new(seed: i64) -> Random {
        let magnitude = seed.unsigned_abs();
        let low = magnitude as u32;
        match (magnitude >> 32) as u32 {
            0 => Random::from_key(&[low]),
            high => Random::from_key(&[low, high]),
        }
    }

    fn from_key(key: &[u32]) -> Random {
        let mut state = [0u32; WORDS];
        state[0] = 19_650_218;
        for i in 1..WORDS {
            state[i] = 1_812_433_253u32.wrapping_mul(state[i - 1] ^ (state[i - 1] >> 30)).wrapping_add(i as u32);
        }
        let (mut i, mut j) = (1, 0);
        for _ in 0..WORDS.max(key.len()) {
            let mixed = (state[i - 1] ^ (state[i - 1] >> 30)).wrapping_mul(1_664_525);
            state[i] = (state[i] ^ mixed).wrapping_add(key[j]).wrapping_add(j as u32);
            i = following(i, &mut state);
            j = (j + 1) % key.len();
        }
        for _ in 0..WORDS - 1 {
            let mixed = (state[i - 1] ^ (state[i - 1] >> 30)).wrapping_mul(1_566_083_941);
            state[i] = (state[i] ^ mixed).wrapping_sub(i as u32);
            i = following(i, &mut state);
        }
        state[0] = 0x8000_0000;
        Random { state, index: WORDS }
    }

    fn next_u32(&mut self) -> u32 {
        if self.index == WORDS {
            self.twist();
        }
        let mut word = self.state[self.index];
        self.index += 1;
        word ^= word >> 11;
        word ^= (word << 7) & 0x9d2c_5680;
        word ^= (word << 15) & 0xefc6_0000;
        word ^ (word >> 18)
    }

    fn twist(&mut self) {
        for i in 0..WORDS {
            let joined = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % WORDS] & 0x7fff_ffff);
            let odd = if joined & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[i] = self.state[(i + 397) % WORDS] ^ (joined >> 1) ^ odd;
        }
        self.index = 0;
    }

    /// `getrandbits(bits)`, 1 to 32.
    pub fn getrandbits(&mut self, bits: u32) -> u32 {
        self.next_u32() >> (32 - bits)
    }

    /// `_randbelow(n)`, n >= 1: draws again while out of range.
    pub fn below(&mut self, n: usize) -> usize {
        let bits = usize::BITS - n.leading_zeros();
        loop {
            let drawn = self.getrandbits(bits) as usize;
            if drawn < n {
                return drawn;
            }
        }
    }

    /// `random()`, in [0, 1).
    pub fn random(&mut self) -> f64 {
        let (high, low) = (self.next_u32() >> 5, self.next_u32() >> 6);
        (f64::from(high) * 67_108_864.0 + f64::from(low)) / 9_007_199_254_740_992.0
    }

    /// `shuffle(items)`.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }

    /// `sample(range(n), k)`: indices in the order drawn. `k <= n`.
    pub fn sample(&mut self, n: usize, k: usize) -> Vec<usize> {
        debug_assert!(k <= n, "a sample larger than its population");
        if n <= set_size(k) { self.sample_from_pool(n, k) } else { self.sample_by_set(n, k) }
    }

    fn sample_from_pool(&mut self, n: usize, k: usize) -> Vec<usize> {
        let mut pool: Vec<usize> = (0..n).collect();
        let draw = |i| {
            let j = self.below(n - i);
            let drawn = pool[j];
            pool[j] = pool[n - i - 1];
            drawn
        };
        (0..k).map(draw).collect()
    }

    fn sample_by_set(&mut self, n: usize, k: usize) -> Vec<usize> {
        let mut drawn = HashSet::new();
        let draw = |_| {
            loop {
                let j = self.below(n);
                if drawn.insert(j) {
                    return j;
                }
            }
        };
        (0..k).map(draw).collect()
    }
}

/// The next index of the seeding loops, which wrap at the end and carry the last word to the front.
fn following(i: usize, state: &mut [u32; WORDS]) -> usize {
    if i + 1 < WORDS {
        return i + 1;
    }
    state[0] = state[WORDS - 1];
    1
}

/// The population size up to which `sample` copies a pool: `21 + 4 ** ceil(log(3k, 4))` for k > 5.
fn set_size(k: usize) -> usize {
    if k <= 5 {
        return 21;
    }
    let mut power = 1;
    while power < 3 * k {
        power *= 4;
    }
    21 + power
}

/// `str.isspace()` of one character: Unicode White_Space and the four information separators.
pub fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// `str.strip()`.
pub fn strip(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// `str.rstrip()`.
pub fn rstrip(text: &str) -> &str {
    text.trim_end_matches(is_space)
}

/// `str.capitalize()`: the first character in title case, all others in lower case.
pub fn capitalize(text: &str) -> String {
    let mut characters = text.chars();
    let Some(first) = characters.next() else { return String::new() };
    title(first) + &characters.as_str().to_lowercase()
}

/// Title case of one character. Rust has upper case only: where that is several letters the title has one capital
/// (`ß` -> `Ss`), and the few characters with a title form of their own are listed (Unicode's `Lt` digraphs).
fn title(c: char) -> String {
    match c {
        '\u{1c4}'..='\u{1c6}' => "\u{1c5}".to_owned(),
        '\u{1c7}'..='\u{1c9}' => "\u{1c8}".to_owned(),
        '\u{1ca}'..='\u{1cc}' => "\u{1cb}".to_owned(),
        '\u{1f1}'..='\u{1f3}' => "\u{1f2}".to_owned(),
        // Georgian letters have no title case, although they have upper case.
        '\u{10d0}'..='\u{10ff}' => c.to_string(),
        _ => {
            let mut upper = c.to_uppercase();
            let first = upper.next().expect("upper case is never empty");
            std::iter::once(first).chain(upper.flat_map(char::to_lowercase)).collect()
        }
    }
}

/// `repr` of a float: the shortest digits that read back as it, with an exponent below 1e-4 and from 1e16.
pub fn float_repr(x: f64) -> String {
    if x.is_nan() {
        return "nan".to_owned();
    }
    if x.is_infinite() {
        return if x > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    if x == 0.0 || (1e-4..1e16).contains(&x.abs()) {
        return format!("{x:?}");
    }
    let text = format!("{x:e}");
    let (digits, exponent) = text.split_once('e').expect("the format has an exponent");
    let (sign, exponent) = exponent.strip_prefix('-').map_or(("+", exponent), |exponent| ("-", exponent));
    format!("{digits}e{sign}{exponent:0>2}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_python_s() {
        assert_eq!(strip("\u{1c} a b\u{a0}\n"), "a b");
        assert_eq!(rstrip(" a\u{1f}\t"), " a");
        assert_eq!(capitalize("hELLO World"), "Hello world");
        assert_eq!(capitalize("ßa"), "Ssa");
        assert_eq!(capitalize("ǆX"), "ǅx");
        assert_eq!(capitalize(""), "");
    }

    #[test]
    fn pools_and_sets_part_where_cpython_parts_them() {
        assert_eq!([5, 6, 10, 11, 21, 22, 25, 26].map(set_size), [21, 85, 85, 85, 85, 277, 277, 277]);
    }

    #[test]
    fn floats_read_as_python_prints_them() {
        // CPython 3.11's repr of each.
        for (x, text) in [
            (-2.7507774812404016, "-2.7507774812404016"),
            (-20.0, "-20.0"),
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (0.0001, "0.0001"),
            (0.00001234, "1.234e-05"),
            (1e16, "1e+16"),
            (1234567890123456.0, "1234567890123456.0"),
            (1.5e-300, "1.5e-300"),
            (f64::NEG_INFINITY, "-inf"),
            (f64::NAN, "nan"),
        ] {
            assert_eq!(float_repr(x), text);
        }
    }
}
