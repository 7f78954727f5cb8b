// Answers questions about a passage with the model of this bundle.  Foundation and Core ML only, iOS 15 and later; see HOWTO.md.
//
//     let reader = try QuestionReader.load(from: folder)
//     let answer = try reader.answer("Who built it?", in: passage)
//     answer.text, answer.range, answer.score
//
// Text becomes WordPieces as BERT's own tokenizer makes them, long passages become overlapping windows, and the best span of all windows is the answer.
// Positions in a text are counted in Unicode scalars (code points) inside, and given as an NSRange (UTF-16 units) at the end.

import Foundation
#if canImport(CoreML)
import CoreML
import CryptoKit
#endif

/// A span of the passage, or the statement that the passage holds no answer (empty text, empty range).
public struct Answer: Equatable, Sendable {
    public let text: String
    /// Where the answer stands in the passage: `(passage as NSString).substring(with: range) == text`.
    public let range: NSRange
    /// Share of this answer among all possible ones, 0 to 1.
    public let score: Double
    public let isNoAnswer: Bool
}

public enum QuestionError: LocalizedError, Equatable {
    case emptyText(String)
    case questionTooLong(tokens: Int, limit: Int)
    case noAnswerUntrained
    case badBundle(String)
    case badOutput(String)

    public var errorDescription: String? {
        switch self {
        case .emptyText(let what): return "The \(what) holds no word or sign that the vocabulary can represent."
        case .questionTooLong(let tokens, let limit): return "The question has \(tokens) tokens, at most \(limit) are allowed."
        case .noAnswerUntrained:
            return "This model was not trained with unanswerable questions, so it cannot say that a passage holds no answer. Ask without allowNoAnswer."
        case .badBundle(let what): return "The bundle cannot be used: \(what)"
        case .badOutput(let what): return "The model returned something else than expected: \(what)"
        }
    }
}

/// Whatever computes logits: Core ML below, or ExecuTorch (HOWTO.md).
public protocol SpanModel {
    /// Start and end logits, one for each id.  `ids` is one window, padded to a length that the model takes.
    func logits(ids: [Int32]) throws -> (start: [Float], end: [Float])
}

// MARK: - Settings

/// The part of manifest.json that an app needs.
public struct ReaderSettings: Decodable {
    public struct Window: Decodable {
        public let maxTokens: Int
        public let docStride: Int
        public let maxQuestionTokens: Int
    }

    public struct Tokenizer: Decodable {
        public let lowercase: Bool
        public let stripAccents: Bool
        public let splitIdeographs: Bool
    }

    public struct Config: Decodable {
        public let package: String
        public let scheme: String
        public let lengths: [Int]
        public let window: Window
        public let tokenizer: Tokenizer
    }

    public struct NoAnswer: Decodable {
        public let trained: Bool
        public let threshold: Double?
    }

    public let config: Config
    public let noAnswer: NoAnswer
    public let parent: String?  // sha256 of the weights that the model was made from

    public init(manifest: Data) throws {
        let decoder = JSONDecoder()
        decoder.keyDecodingStrategy = .convertFromSnakeCase
        self = try decoder.decode(ReaderSettings.self, from: manifest)
    }
}

// MARK: - Tokens

/// BERT's tokenizer: clean, separate ideographs, strip accents, lower-case, split at spaces and punctuation, then greedy WordPieces.
public struct WordPieceTokenizer {
    /// A WordPiece and the scalars of the text that it covers.
    public struct Token: Equatable {
        public let id: Int32
        public let start: Int
        public let end: Int
    }

    private struct Mark {
        let scalar: Unicode.Scalar
        let origin: Int  // index of the scalar in the text that it comes from
    }

    private static let longestWord = 100

    public let padId: Int32
    public let clsId: Int32
    public let sepId: Int32
    private let unknownId: Int32
    private let ids: [[UInt32]: Int32]  // by scalars, not by String: Swift takes canonically equivalent strings for equal
    private let longestPiece: Int
    private let settings: ReaderSettings.Tokenizer

    /// `vocabulary`: the bytes of vocab.txt, one token a line in the order of their ids.
    public init(vocabulary: Data, settings: ReaderSettings.Tokenizer) throws {
        var ids: [[UInt32]: Int32] = [:]
        var longest = 1
        let newline = UInt8(ascii: "\n")
        for (number, line) in vocabulary.split(separator: newline, omittingEmptySubsequences: false).enumerated() where !line.isEmpty {
            let piece = String(decoding: line, as: UTF8.self).unicodeScalars.map { $0.value }
            ids[piece] = Int32(number)
            longest = max(longest, piece.count)
        }
        func id(_ token: String) throws -> Int32 {
            guard let id = ids[token.unicodeScalars.map({ $0.value })] else {
                throw QuestionError.badBundle("vocab.txt holds no \(token)")
            }
            return id
        }
        padId = try id("[PAD]")
        clsId = try id("[CLS]")
        sepId = try id("[SEP]")
        unknownId = try id("[UNK]")
        self.ids = ids
        longestPiece = longest
        self.settings = settings
    }

    /// The WordPieces of a text.  A special token that somebody types, such as [SEP], is taken for ordinary characters.
    public func tokens(_ text: String) -> [Token] {
        var found: [Token] = []
        var word: [Mark] = []
        for mark in normalised(text) {
            if mark.scalar.properties.isWhitespace {
                appendPieces(of: word, to: &found)
                word.removeAll(keepingCapacity: true)
            } else if WordPieceTokenizer.isPunctuation(mark.scalar) {
                appendPieces(of: word, to: &found)
                word.removeAll(keepingCapacity: true)
                appendPieces(of: [mark], to: &found)
            } else {
                word.append(mark)
            }
        }
        appendPieces(of: word, to: &found)
        return found
    }

    private func normalised(_ text: String) -> [Mark] {
        let space: Unicode.Scalar = " "
        var marks: [Mark] = []
        for (origin, scalar) in text.unicodeScalars.enumerated() {
            if WordPieceTokenizer.isDropped(scalar) { continue }
            if WordPieceTokenizer.isSpace(scalar) {
                marks.append(Mark(scalar: space, origin: origin))
                continue
            }
            if scalar.isASCII {  // most text: nothing to decompose, and no String made for it
                let capital = settings.lowercase && ("A"..."Z").contains(scalar)
                marks.append(Mark(scalar: capital ? Unicode.Scalar(UInt8(scalar.value + 32)) : scalar, origin: origin))
                continue
            }
            let alone = settings.splitIdeographs && WordPieceTokenizer.isIdeograph(scalar.value)
            if alone { marks.append(Mark(scalar: space, origin: origin)) }
            var kept = [scalar]
            if settings.stripAccents {
                let decomposed = Array(String(scalar).decomposedStringWithCanonicalMapping.unicodeScalars)
                kept = decomposed.filter { $0.properties.generalCategory != .nonspacingMark }
            }
            if settings.lowercase {
                kept = kept.flatMap { Array($0.properties.lowercaseMapping.unicodeScalars) }
            }
            marks.append(contentsOf: kept.map { Mark(scalar: $0, origin: origin) })
            if alone { marks.append(Mark(scalar: space, origin: origin)) }
        }
        return marks
    }

    /// The longest piece of the vocabulary, again and again; a word with a part that is in no piece is unknown as a whole.
    private func appendPieces(of word: [Mark], to found: inout [Token]) {
        guard let first = word.first, let last = word.last else { return }
        var pieces: [Token] = []
        var begin = 0
        while begin < word.count && word.count <= WordPieceTokenizer.longestWord {
            var end = min(word.count, begin + longestPiece)
            var match: Int32?
            while end > begin {
                let prefix: [UInt32] = begin > 0 ? [35, 35] : []  // "##" continues a word
                match = ids[prefix + word[begin..<end].map { $0.scalar.value }]
                if match != nil { break }
                end -= 1
            }
            guard let id = match else { break }
            pieces.append(Token(id: id, start: word[begin].origin, end: word[end - 1].origin + 1))
            begin = end
        }
        if begin == word.count {
            found.append(contentsOf: pieces)
        } else {
            found.append(Token(id: unknownId, start: first.origin, end: last.origin + 1))
        }
    }

    private static func isSpace(_ scalar: Unicode.Scalar) -> Bool {
        return scalar == "\t" || scalar == "\n" || scalar == "\r" || scalar.properties.isWhitespace
    }

    /// Control, format and private characters, and the sign for what could not be decoded.
    private static func isDropped(_ scalar: Unicode.Scalar) -> Bool {
        if scalar == "\t" || scalar == "\n" || scalar == "\r" { return false }
        if scalar.value == 0 || scalar.value == 0xFFFD { return true }
        switch scalar.properties.generalCategory {
        case .control, .format, .privateUse: return true
        default: return false
        }
    }

    private static func isPunctuation(_ scalar: Unicode.Scalar) -> Bool {
        switch scalar.value {
        case 33...47, 58...64, 91...96, 123...126: return true  // every sign of ASCII, also those that Unicode calls symbols
        default: break
        }
        switch scalar.properties.generalCategory {
        case .connectorPunctuation, .dashPunctuation, .openPunctuation, .closePunctuation, .initialPunctuation, .finalPunctuation, .otherPunctuation:
            return true
        default:
            return false
        }
    }

    private static func isIdeograph(_ value: UInt32) -> Bool {
        switch value {
        case 0x3400...0x4DBF, 0x4E00...0x9FFF, 0xF900...0xFAFF: return true
        case 0x20000...0x2A6DF, 0x2A700...0x2B81F, 0x2B920...0x2CEAF, 0x2F800...0x2FA1F: return true
        default: return false
        }
    }
}

// MARK: - Windows

/// [CLS] question [SEP] part of the passage [SEP], unpadded.
public struct QuestionWindow {
    public let ids: [Int32]
    let firstContext: Int  // position of the first passage token
    let firstToken: Int  // which token of the passage that is
    let owned: [Bool]  // of each passage token: does it have its best context in this window?
}

func makeWindows(question: [Int32], passage: [Int32], tokenizer: WordPieceTokenizer, settings: ReaderSettings.Window) throws -> [QuestionWindow] {
    if question.isEmpty { throw QuestionError.emptyText("question") }
    if passage.isEmpty { throw QuestionError.emptyText("passage") }
    if question.count > settings.maxQuestionTokens {
        throw QuestionError.questionTooLong(tokens: question.count, limit: settings.maxQuestionTokens)
    }
    let capacity = settings.maxTokens - 3 - question.count
    if passage.count > capacity && capacity <= settings.docStride {  // the next window would not go forward
        throw QuestionError.questionTooLong(tokens: question.count, limit: max(0, settings.maxTokens - 4 - settings.docStride))
    }
    var starts = [0]
    while starts[starts.count - 1] + capacity < passage.count {
        starts.append(starts[starts.count - 1] + capacity - settings.docStride)
    }
    let owners = bestWindows(tokens: passage.count, starts: starts, capacity: capacity)
    let prefix = [tokenizer.clsId] + question + [tokenizer.sepId]
    var windows: [QuestionWindow] = []
    for (number, begin) in starts.enumerated() {
        let end = min(begin + capacity, passage.count)
        let ids = prefix + Array(passage[begin..<end]) + [tokenizer.sepId]
        let owned = owners[begin..<end].map { $0 == number }
        windows.append(QuestionWindow(ids: ids, firstContext: prefix.count, firstToken: begin, owned: owned))
    }
    return windows
}

/// For each token of the passage the window in which it has the most context on its poorer side, the earlier one if two are equal.
func bestWindows(tokens: Int, starts: [Int], capacity: Int) -> [Int] {
    var best = [Int](repeating: -1, count: tokens)
    var owners = [Int](repeating: 0, count: tokens)
    for (number, begin) in starts.enumerated() {
        let end = min(begin + capacity, tokens)
        for token in begin..<end {
            let score = min(token - begin, end - 1 - token)
            if score > best[token] {
                best[token] = score
                owners[token] = number
            }
        }
    }
    return owners
}

// MARK: - Reader

/// Tokenizer, windows, model and decoding together.
public final class QuestionReader {
    private static let longestAnswer = 30  // tokens

    public let settings: ReaderSettings
    public let tokenizer: WordPieceTokenizer
    public let model: any SpanModel

    public init(settings: ReaderSettings, tokenizer: WordPieceTokenizer, model: any SpanModel) {
        self.settings = settings
        self.tokenizer = tokenizer
        self.model = model
    }

    /// `folder` holds manifest.json and vocab.txt.
    public convenience init(folder: URL, model: any SpanModel) throws {
        let settings = try ReaderSettings(manifest: Data(contentsOf: folder.appendingPathComponent("manifest.json")))
        let vocabulary = try Data(contentsOf: folder.appendingPathComponent("vocab.txt"))
        let tokenizer = try WordPieceTokenizer(vocabulary: vocabulary, settings: settings.config.tokenizer)
        self.init(settings: settings, tokenizer: tokenizer, model: model)
    }

    /// The best answer.  `allowNoAnswer`: let "the passage does not say" compete; throws for models that were not trained for it
    /// (settings.noAnswer.trained).
    public func answer(_ question: String, in passage: String, allowNoAnswer: Bool = false) throws -> Answer {
        guard let best = try answers(question, in: passage, count: 1, allowNoAnswer: allowNoAnswer).first else {
            throw QuestionError.badOutput("no span")
        }
        return best
    }

    /// The best answers that do not overlap, best first.  Between two windows a task that was cancelled ends with CancellationError.
    public func answers(_ question: String, in passage: String, count: Int, allowNoAnswer: Bool = false) throws -> [Answer] {
        if allowNoAnswer && !settings.noAnswer.trained { throw QuestionError.noAnswerUntrained }
        let (windows, tokens) = try encode(question, passage)
        let logits = try windows.map { window in
            try _Concurrency.Task.checkCancellation()  // an app may have a Task of its own
            return try self.logits(window)
        }
        return decode(windows, tokens, logits, passage, count: count, allowNoAnswer: allowNoAnswer)
    }

    /// Windows of a question and a passage, and the tokens of the passage.
    func encode(_ question: String, _ passage: String) throws -> ([QuestionWindow], [WordPieceTokenizer.Token]) {
        let asked = tokenizer.tokens(question).map { $0.id }
        let tokens = tokenizer.tokens(passage)
        let windows = try makeWindows(question: asked, passage: tokens.map { $0.id }, tokenizer: tokenizer, settings: settings.config.window)
        return (windows, tokens)
    }

    /// Logits of a window, padded to the least length that the model takes.
    func logits(_ window: QuestionWindow) throws -> (start: [Float], end: [Float]) {
        guard let length = settings.config.lengths.filter({ $0 >= window.ids.count }).min() else {
            throw QuestionError.badBundle("no length for a window of \(window.ids.count) tokens")
        }
        let padding = [Int32](repeating: tokenizer.padId, count: length - window.ids.count)
        let logits = try model.logits(ids: window.ids + padding)
        guard logits.start.count == length, logits.end.count == length else {
            throw QuestionError.badOutput("\(logits.start.count) and \(logits.end.count) logits for \(length) ids")
        }
        let seen = 0..<window.ids.count
        guard logits.start[seen].allSatisfy({ $0.isFinite }), logits.end[seen].allSatisfy({ $0.isFinite }) else {
            throw QuestionError.badOutput("logits that are not finite")
        }
        return logits
    }

    private struct Span {
        let value: Double  // start logit + end logit, less those of [CLS] where windows are compared
        let start: Int  // scalars of the passage
        let end: Int
    }

    func decode(
        _ windows: [QuestionWindow], _ tokens: [WordPieceTokenizer.Token], _ logits: [(start: [Float], end: [Float])], _ passage: String, count: Int,
        allowNoAnswer: Bool
    ) -> [Answer] {
        // Training compares tokens with those of their own window alone, so several windows are compared beside their own [CLS]: a model that was not
        // trained with windows without an answer has nothing to compare them by.
        let nulls = logits.map { Double($0.start[0]) + Double($0.end[0]) }
        let beside = settings.noAnswer.trained && nulls.count > 1 ? nulls : nulls.map { _ in 0 }
        let spans = admissible(windows, tokens, logits, beside)
        var null = -Double.infinity
        if allowNoAnswer {
            null = zip(nulls, beside).map { $0 - $1 }.min()! - (settings.noAnswer.threshold ?? 0)
        }
        guard let best = spans.first else { return [] }
        let top = max(best.value, null)
        let total = spans.reduce(exp(null - top)) { $0 + exp($1.value - top) }
        let scalars = Array(passage.unicodeScalars)
        var chosen: [Answer] = []
        var places: [Range<Int>] = []
        for span in spans where chosen.count < count {
            if places.contains(where: { $0.overlaps(span.start..<span.end) }) { continue }  // as most do
            let place = wholeCharacters(scalars, span.start, span.end)
            if places.contains(where: { $0.overlaps(place) }) { continue }
            places.append(place)
            chosen.append(makeAnswer(place, scalars, exp(span.value - top) / total))
        }
        if null > -Double.infinity {
            let nothing = Answer(text: "", range: NSRange(location: 0, length: 0), score: exp(null - top) / total, isNoAnswer: true)
            let position = chosen.firstIndex { $0.score < nothing.score } ?? chosen.count
            chosen.insert(nothing, at: position)
        }
        return Array(chosen.prefix(max(0, count)))  // which traps below zero
    }

    /// All spans within the length limit, each counted only in the window in which its first token has its best context; best first.
    private func admissible(
        _ windows: [QuestionWindow], _ tokens: [WordPieceTokenizer.Token], _ logits: [(start: [Float], end: [Float])], _ beside: [Double]
    ) -> [Span] {
        let longest = min(QuestionReader.longestAnswer, max(1, (settings.config.window.docStride - 1) / 2 + 1))
        var spans: [Span] = []
        for (index, (window, values)) in zip(windows, logits).enumerated() {
            for first in 0..<window.owned.count where window.owned[first] {
                for last in first..<min(first + longest, window.owned.count) {
                    let sum = Double(values.start[window.firstContext + first]) + Double(values.end[window.firstContext + last])
                    let value = sum - beside[index]
                    spans.append(Span(value: value, start: tokens[window.firstToken + first].start, end: tokens[window.firstToken + last].end))
                }
            }
        }
        return spans.sorted { ($1.value, $0.start, $0.end) < ($0.value, $1.start, $1.end) }
    }

    private func makeAnswer(_ place: Range<Int>, _ scalars: [Unicode.Scalar], _ score: Double) -> Answer {
        func units(_ part: ArraySlice<Unicode.Scalar>) -> Int {
            return part.reduce(0) { $0 + ($1.value > 0xFFFF ? 2 : 1) }
        }
        var text = String.UnicodeScalarView()
        text.append(contentsOf: scalars[place])
        let range = NSRange(location: units(scalars[..<place.lowerBound]), length: units(scalars[place]))
        return Answer(text: String(text), range: range, score: min(1, score), isNoAnswer: false)
    }
}

private let zeroWidthJoiner: UInt32 = 0x200D
private let firstMark: UInt32 = 0x300  // of all that joins
private let longestCharacter = 32  // code points

/// `begin` and `end` moved outwards over combining marks, variation selectors, emoji modifiers, tags (of flags) and joined emoji, so that no visible
/// character is cut; each by `longestCharacter` at most: `whole_characters` of pocketqa/spans.py, line by line.
func wholeCharacters(_ scalars: [Unicode.Scalar], _ begin: Int, _ end: Int) -> Range<Int> {
    var begin = begin
    var end = end
    let first = begin - longestCharacter
    let last = end + longestCharacter
    while begin > first && isInside(scalars, begin) { begin -= 1 }
    while end < last && isInside(scalars, end) { end += 1 }
    return begin..<end
}

/// Whether what stands before a place and what follows it are one visible character.
private func isInside(_ scalars: [Unicode.Scalar], _ place: Int) -> Bool {
    if place <= 0 || place >= scalars.count { return false }
    let before = scalars[place - 1].value
    let following = scalars[place].value
    if before < firstMark && following < firstMark { return false }
    if following == zeroWidthJoiner { return place + 1 < scalars.count }  // with nothing behind it, it joins nothing
    switch scalars[place].properties.generalCategory {
    case .nonspacingMark, .enclosingMark, .spacingMark: return true
    // Also behind a joiner, with which words of Malayalam end.
    case .spaceSeparator, .lineSeparator, .paragraphSeparator, .control, .connectorPunctuation, .dashPunctuation: return false
    case .openPunctuation, .closePunctuation, .initialPunctuation, .finalPunctuation, .otherPunctuation: return false
    default: break
    }
    if before == zeroWidthJoiner && place > 1 { return true }
    if (0x1100...0x11FF).contains(before) && (0x1160...0x11FF).contains(following) { return true }  // a syllable of Hangul in parts
    if following == 0x0E33 || following == 0x0EB3 { return true }  // sara am of Thai and Lao
    return (0x1F3FB...0x1F3FF).contains(following) || (0xE0020...0xE007F).contains(following)
}

// MARK: - Core ML

#if canImport(CoreML)
/// The Core ML model of a bundle.
public final class CoreMLSpanModel: SpanModel {
    private let model: MLModel

    public init(_ model: MLModel) {
        self.model = model
    }

    public func logits(ids: [Int32]) throws -> (start: [Float], end: [Float]) {
        let array = try MLMultiArray(shape: [1, NSNumber(value: ids.count)], dataType: .int32)
        for (position, id) in ids.enumerated() {
            array[position] = NSNumber(value: id)
        }
        let input = try MLDictionaryFeatureProvider(dictionary: ["input_ids": MLFeatureValue(multiArray: array)])
        let output = try model.prediction(from: input)
        return (try values(of: "start_logits", in: output), try values(of: "end_logits", in: output))
    }

    private func values(of name: String, in output: any MLFeatureProvider) throws -> [Float] {
        guard let array = output.featureValue(for: name)?.multiArrayValue else {
            throw QuestionError.badOutput("no \(name)")
        }
        return (0..<array.count).map { array[$0].floatValue }
    }
}

extension QuestionReader {
    /// `folder` holds manifest.json and vocab.txt.  The model is the one in `folder`, compiled (.mlmodelc) or as it is (then compiled here, which takes
    /// seconds, and kept), or else the one of its name that Xcode compiled into the app; it must be the one that the manifest is of.
    public static func load(from folder: URL, computeUnits: MLComputeUnits = .all) throws -> QuestionReader {
        let manifest = try Data(contentsOf: folder.appendingPathComponent("manifest.json"))
        let settings = try ReaderSettings(manifest: manifest)
        let source = folder.appendingPathComponent(settings.config.package)
        let compiledName = source.deletingPathExtension().lastPathComponent
        let beside = folder.appendingPathComponent(compiledName + ".mlmodelc")
        let url: URL
        if FileManager.default.fileExists(atPath: beside.path) {
            url = beside
        } else if FileManager.default.fileExists(atPath: source.path) {
            url = try compiled(source, manifest: manifest)
        } else if let inApp = Bundle.main.url(forResource: compiledName, withExtension: "mlmodelc") {
            url = inApp
        } else {
            throw QuestionError.badBundle("no \(compiledName).mlmodelc in the app and no \(settings.config.package) in \(folder.path)")
        }
        let configuration = MLModelConfiguration()
        configuration.computeUnits = computeUnits
        let model = try MLModel(contentsOf: url, configuration: configuration)
        let written = model.modelDescription.metadata[.creatorDefinedKey] as? [String: String] ?? [:]
        let expected: [(String, String?)] = [("pocketqa.checkpoint_sha256", settings.parent), ("pocketqa.scheme", settings.config.scheme)]
        for (key, value) in expected {
            if let found = written[key], let wanted = value, found != wanted {
                throw QuestionError.badBundle("\(url.lastPathComponent) is another model than manifest.json is of: \(key) is \(found), not \(wanted)")
            }
        }
        return try QuestionReader(folder: folder, model: CoreMLSpanModel(model))
    }

    static func sha256(_ data: Data) -> String {
        return SHA256.hash(data: data).map { String(format: "%02x", $0) }.joined()
    }

    /// The model compiled once for each manifest.  Core ML may read the files for as long as the model is in use, so they are not deleted after loading;
    /// in the caches, which are in no backup, the system may delete them while the app does not run.
    private static func compiled(_ source: URL, manifest: Data) throws -> URL {
        let files = FileManager.default
        let caches = try files.url(for: .cachesDirectory, in: .userDomainMask, appropriateFor: nil, create: true)
        let folder = caches.appendingPathComponent("PocketQA", isDirectory: true)
        let kept = folder.appendingPathComponent(sha256(manifest) + ".mlmodelc", isDirectory: true)
        if files.fileExists(atPath: kept.path) { return kept }
        try files.createDirectory(at: folder, withIntermediateDirectories: true)
        let made = try MLModel.compileModel(at: source)  // in a temporary folder
        do {
            try files.moveItem(at: made, to: kept)
        } catch {
            try? files.removeItem(at: made)
            guard files.fileExists(atPath: kept.path) else { throw error }  // another process may have been quicker
        }
        return kept
    }
}
#endif

// MARK: - Golden vectors

/// golden.json: what the original model computed.
struct GoldenVectors: Decodable {
    struct Window: Decodable {
        let ids: [Int32]
        let startLogits: [Float]
        let endLogits: [Float]
    }

    struct Span: Decodable {
        let text: String
        let utf16Start: Int
        let utf16End: Int
    }

    struct Question: Decodable {
        let question: String
        let context: String
        let windows: [Window]
        let answer: Span
        let gap: Float
    }

    struct Text: Decodable {
        let text: String
        let ids: [Int32]
        let utf16: [[Int]]
        let whole: [[Int]]?  // bundles made before it was written have none
    }

    let questions: [Question]
    let texts: [Text]

    init(json: Data) throws {
        let decoder = JSONDecoder()
        decoder.keyDecodingStrategy = .convertFromSnakeCase
        self = try decoder.decode(GoldenVectors.self, from: json)
    }
}

extension QuestionReader {
    /// Compares this reader with golden.json and returns what differs, in sentences: nothing, if all is well.
    ///
    /// Tokens must be the same, and the whole characters around them.  Logits may differ by `tolerance`, as a share of the spread between a question's
    /// greatest and least logit (HOWTO.md says which), and an answer may be another only where two were so close that this tolerance decides.
    public func differences(fromGolden file: URL, tolerance: Float) throws -> [String] {
        let golden = try GoldenVectors(json: Data(contentsOf: file))
        var problems: [String] = []
        for text in golden.texts { problems += tokenDifferences(text) }
        for question in golden.questions { problems += try differences(from: question, tolerance) }
        return problems
    }

    private func tokenDifferences(_ expected: GoldenVectors.Text) -> [String] {
        let scalars = Array(expected.text.unicodeScalars)
        var offsets = [0]  // of each scalar, in UTF-16 units
        for scalar in scalars {
            offsets.append(offsets[offsets.count - 1] + (scalar.value > 0xFFFF ? 2 : 1))
        }
        let tokens = tokenizer.tokens(expected.text)
        let sameIds = tokens.map { $0.id } == expected.ids
        let samePlaces = tokens.map { [offsets[$0.start], offsets[$0.end]] } == expected.utf16
        guard sameIds && samePlaces else { return ["The tokens of \"\(expected.text)\" are not those of the original tokenizer."] }
        let whole = tokens.map { wholeCharacters(scalars, $0.start, $0.end) }.map { [offsets[$0.lowerBound], offsets[$0.upperBound]] }
        if let wanted = expected.whole, whole != wanted { return ["Answers in \"\(expected.text)\" would not end where characters do."] }
        return []
    }

    private func differences(from expected: GoldenVectors.Question, _ tolerance: Float) throws -> [String] {
        let (windows, tokens) = try encode(expected.question, expected.context)
        guard windows.map({ $0.ids }) == expected.windows.map({ $0.ids }) else {
            return ["\"\(expected.question)\": expected \(expected.windows.count) windows of other tokens, found \(windows.count)."]
        }
        let logits = try windows.map { try self.logits($0) }
        var all: [Float] = []
        var largest: Float = 0
        for (window, (found, wanted)) in zip(windows, zip(logits, expected.windows)) {
            let context = window.firstContext..<(window.firstContext + window.owned.count)
            for place in [0] + Array(context) {  // [CLS] and the passage: other positions mean nothing, and padding may move them
                all += [wanted.startLogits[place], wanted.endLogits[place]]
                largest = max(largest, abs(found.start[place] - wanted.startLogits[place]), abs(found.end[place] - wanted.endLogits[place]))
            }
        }
        let allowed = tolerance * ((all.max() ?? 0) - (all.min() ?? 0))
        var problems: [String] = []
        if largest > allowed {
            problems.append("\"\(expected.question)\": logits differ by \(largest), at most \(allowed) is allowed.")
        }
        let answer = decode(windows, tokens, logits, expected.context, count: 1, allowNoAnswer: false).first
        let range = NSRange(location: expected.answer.utf16Start, length: expected.answer.utf16End - expected.answer.utf16Start)
        if answer?.range != range && expected.gap > 4 * allowed {  // a span adds two logits, and two spans are compared
            problems.append("\"\(expected.question)\": expected \"\(expected.answer.text)\", found \"\(answer?.text ?? "nothing")\".")
        }
        return problems
    }
}
