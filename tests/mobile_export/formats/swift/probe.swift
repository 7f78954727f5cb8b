// Answers from an app's side, for test_swift_compiled.py:
//     probe FOLDER INPUT.json    prints tokens, windows and answers, and what differs from golden.json
//     probe FOLDER FOLDER        times two bundles
import Foundation

struct Input: Decodable {
    struct Case: Decodable {
        let question: String
        let context: String
        let count: Int
        let allowNoAnswer: Bool
    }

    let texts: [String]
    let cases: [Case]
}

struct Output: Encodable {
    struct Found: Encodable {
        let text: String
        let location: Int
        let length: Int
        let score: Double
        let isNoAnswer: Bool
    }

    struct Case: Encodable {
        var windows: [[Int32]] = []
        var answers: [Found] = []
        var error = ""
    }

    var tokens: [[[Int]]] = []
    var cases: [Case] = []
    var differences: [String] = []
}

/// Logits that follow from ids and positions alone: those of `Made` in test_swift_compiled.py.
struct Made: SpanModel {
    func logits(ids: [Int32]) throws -> (start: [Float], end: [Float]) {
        func made(_ factor: Int) -> [Float] {
            return ids.enumerated().map { Float((Int($1) * factor + $0 * 104_729) % 2003) / 128 }
        }
        return (made(7919), made(6271))
    }
}

/// Those that golden.json holds.
struct Golden: SpanModel {
    let windows: [GoldenVectors.Window]

    func logits(ids: [Int32]) throws -> (start: [Float], end: [Float]) {
        guard let window = windows.first(where: { ids.starts(with: $0.ids) }) else { throw QuestionError.badOutput("a window that is not golden") }
        let padding = [Float](repeating: 0, count: ids.count - window.ids.count)
        return (window.startLogits + padding, window.endLogits + padding)
    }
}

/// The same logits after a while.
struct Slow: SpanModel {
    let seconds: Double

    func logits(ids: [Int32]) throws -> (start: [Float], end: [Float]) {
        Thread.sleep(forTimeInterval: seconds)
        return try Made().logits(ids: ids)
    }
}

@main
struct Probe {
    static func main() throws {
        let folder = URL(fileURLWithPath: CommandLine.arguments[1])
        if !CommandLine.arguments[2].hasSuffix(".json") {
            let bundles = zip(CommandLine.arguments.dropFirst(), [0.003, 0.001]).map { path, seconds -> TimedBundle in
                let folder = URL(fileURLWithPath: path)
                return TimedBundle(folder: folder, engine: "made", computeUnit: "cpu") {
                    try QuestionReader(folder: folder, model: Slow(seconds: seconds))
                }
            }
            let made = try timeQuestions(golden: folder.appendingPathComponent("golden.json"), of: bundles, mode: .rapid)
            return print(String(decoding: made, as: UTF8.self))
        }
        let input = try JSONDecoder().decode(Input.self, from: Data(contentsOf: URL(fileURLWithPath: CommandLine.arguments[2])))
        let reader = try QuestionReader(folder: folder, model: Made())
        var output = Output()
        output.tokens = input.texts.map { text in reader.tokenizer.tokens(text).map { [Int($0.id), $0.start, $0.end] } }
        for asked in input.cases {
            var found = Output.Case()
            do {
                found.windows = try reader.encode(asked.question, asked.context).0.map { $0.ids }
                let answers = try reader.answers(asked.question, in: asked.context, count: asked.count, allowNoAnswer: asked.allowNoAnswer)
                for one in answers {
                    guard (asked.context as NSString).substring(with: one.range) == one.text else { throw QuestionError.badOutput("another range") }
                }
                found.answers = answers.map {
                    Output.Found(text: $0.text, location: $0.range.location, length: $0.range.length, score: $0.score, isNoAnswer: $0.isNoAnswer)
                }
            } catch {
                found.error = "\(error)"
            }
            output.cases.append(found)
        }
        let file = folder.appendingPathComponent("golden.json")
        if FileManager.default.fileExists(atPath: file.path) {
            let golden = try GoldenVectors(json: Data(contentsOf: file))
            let replayed = QuestionReader(settings: reader.settings, tokenizer: reader.tokenizer, model: Golden(windows: golden.questions.flatMap { $0.windows }))
            output.differences = try replayed.differences(fromGolden: file, tolerance: 0)
        }
        print(String(decoding: try JSONEncoder().encode(output), as: UTF8.self))
    }
}
