// Times bundles on the device where this runs, by the rules of `pocketqa benchmark`, and makes the file that its `--check` and `--phone` read.
// For a test: an app does not need it.  It stands beside QuestionAnswering.swift, in the same module; HOWTO.md shows how to use it.

import Dispatch
import Foundation
#if canImport(CoreML)
import CoreML
#endif

/// A bundle, and how an app loads it.
public struct TimedBundle {
    public let folder: URL  // with manifest.json
    public let engine: String  // "coreml" or "executorch"
    public let computeUnit: String  // "cpu", "gpu", "ne" or "all"
    public let load: () throws -> QuestionReader

    public init(folder: URL, engine: String, computeUnit: String, load: @escaping () throws -> QuestionReader) {
        self.folder = folder
        self.engine = engine
        self.computeUnit = computeUnit
        self.load = load
    }
}

#if canImport(CoreML)
extension TimedBundle {
    /// A bundle with a Core ML model, as `QuestionReader.load` finds it.
    public init(folder: URL, computeUnits: MLComputeUnits = .all) {
        let unit: String
        switch computeUnits {
        case .all: unit = "all"
        case .cpuOnly: unit = "cpu"
        case .cpuAndGPU: unit = "gpu"
        default: unit = "ne"
        }
        self.init(folder: folder, engine: "coreml", computeUnit: unit) { try QuestionReader.load(from: folder, computeUnits: computeUnits) }
    }
}
#endif

/// At least so many questions and seconds of each bundle (MLPerf Mobile, single stream); `full` is fit to publish.
public enum TimingMode: String {
    case full, quick, rapid

    var queries: Int { return self == .full ? 1024 : self == .quick ? 128 : 64 }
    var seconds: Double { return self == .full ? 60 : self == .quick ? 10 : 6 }
}

private let mostSeconds = 600.0  // of each bundle
private let warmUp = 16  // questions
private let resamples = 1000

/// Asks each bundle the questions of golden.json, one at a time and in turns, so that a change of the device's pace hits all alike.  Returns a run file
/// (JSON).  Takes minutes; run it on the device itself, in a Release build, without a debugger, cool and not charging.
public func timeQuestions(golden: URL, of bundles: [TimedBundle], mode: TimingMode = .full) throws -> Data {
    guard let first = bundles.first, bundles.allSatisfy({ $0.computeUnit == first.computeUnit }) else {
        throw QuestionError.badBundle("expected bundles of one compute unit to be timed together, found \(Set(bundles.map { $0.computeUnit }).sorted())")
    }
    let asked = try Data(contentsOf: golden)
    let questions = try GoldenVectors(json: asked).questions
    var heat = thermalState()
    var timed: [Timed] = []
    for bundle in bundles {
        timed.append(try Timed(bundle, first: questions[0]))
        heat = max(heat, thermalState())
    }
    guard Set(timed.map { $0.label }).count == timed.count else {
        throw QuestionError.badBundle("expected bundles of different names or schemes, found \(timed.map { $0.label })")
    }
    for one in timed {
        for number in 0..<warmUp { _ = try one.ask(questions[number % questions.count]) }
    }
    var chance = Chance(state: 0)
    while timed.contains(where: { $0.samples.count < mode.queries || $0.total < mode.seconds }) && !timed.contains(where: { $0.total >= mostSeconds }) {
        let question = questions[Int.random(in: 0..<questions.count, using: &chance)]
        for one in timed.shuffled(using: &chance) { one.samples.append(try one.ask(question)) }
        heat = max(heat, thermalState())
    }
    #if canImport(CoreML)
    let hash = QuestionReader.sha256(asked)
    #else
    let hash = timed[0].manifest.files["golden.json"] ?? ""
    #endif
    let document = runFile(timed, mode, first.computeUnit, heat, (count: questions.count, sha256: hash))
    return try JSONSerialization.data(withJSONObject: document, options: [.prettyPrinted, .sortedKeys])
}

/// Seconds of one question.
private struct Sample {
    let stages: [Double]  // tokenise, forward, decode
    let tokens: Int
    let positions: Int  // with padding
    var total: Double { return stages.reduce(0, +) }
}

/// A bundle and what was measured of it.
private final class Timed {
    struct Manifest: Decodable {
        let name: String
        let parent: String?
        let files: [String: String]
    }

    let manifest: Manifest
    let engine: String
    let label: String
    let bytes: Int
    let loads: [Double]  // seconds of the first and of the second load
    let firsts: [Double]  // seconds of the first question after each
    let reader: QuestionReader
    var samples: [Sample] = []
    var total: Double { return samples.reduce(0) { $0 + $1.total } }

    init(_ bundle: TimedBundle, first: GoldenVectors.Question) throws {
        manifest = try JSONDecoder().decode(Manifest.self, from: Data(contentsOf: bundle.folder.appendingPathComponent("manifest.json")))
        var loads: [Double] = []
        var firsts: [Double] = []
        var kept: QuestionReader?
        for _ in 0..<2 {
            kept = nil  // before the next is loaded
            let began = now()
            let reader = try pooled { try bundle.load() }
            loads.append(now() - began)
            firsts.append(try pooled { try reader.timed(first).total })
            kept = reader
        }
        (self.loads, self.firsts, reader) = (loads, firsts, kept!)
        engine = bundle.engine
        label = "\(manifest.name), \(engine) \(reader.settings.config.scheme)"
        bytes = try modelBytes(bundle.folder, reader.settings.config.package)
    }

    func ask(_ question: GoldenVectors.Question) throws -> Sample {
        return try pooled { try reader.timed(question) }
    }
}

extension QuestionReader {
    fileprivate func timed(_ asked: GoldenVectors.Question) throws -> Sample {
        let began = now()
        let (windows, tokens) = try encode(asked.question, asked.context)
        let encoded = now()
        let logits = try windows.map { try self.logits($0) }
        let computed = now()
        _ = decode(windows, tokens, logits, asked.context, count: 1, allowNoAnswer: false)
        let stages = [encoded - began, computed - encoded, now() - computed]
        return Sample(stages: stages, tokens: windows.reduce(0) { $0 + $1.ids.count }, positions: logits.reduce(0) { $0 + $1.start.count })
    }
}

private func runFile(
    _ timed: [Timed], _ mode: TimingMode, _ computeUnit: String, _ heat: Int, _ golden: (count: Int, sha256: String)
) -> [String: Any] {
    let system = operatingSystem()
    let missed = timed.filter { $0.samples.count < mode.queries || $0.total < mode.seconds }.map { "\($0.label): too few questions or seconds" }
    func each(_ value: (Timed) -> Any) -> [String: Any] {
        return Dictionary(uniqueKeysWithValues: timed.map { ($0.label, value($0)) })
    }
    func ratios(_ share: Double, _ seconds: (Sample) -> Double) -> [String: Any] {
        var found: [String: Any] = [:]
        for (number, one) in timed.enumerated() {
            for other in timed[(number + 1)...] {
                found["\(one.label) / \(other.label)"] = ratio(one.samples.map(seconds), other.samples.map(seconds), share)
            }
        }
        return found
    }
    let stages = ["tokenise", "forward", "decode"]
    let device: [String: Any] = [
        "name": deviceName(), "os": system, "compute_unit": computeUnit, "thermal_state": thermalStates[heat], "kind": isPhone ? "phone" : "server",
    ]
    let results: [String: Any] = [
        "workload": "golden: \(golden.count) questions of golden.json, windows padded to a length that the model takes",
        "mode": mode.rawValue,
        "rules": ["queries": mode.queries, "seconds": mode.seconds, "max_seconds": mostSeconds, "percentile": 90, "valid": missed.isEmpty, "problems": missed],
        "timings": each { summary($0.samples.map { $0.total }) },
        "stages": each { one in
            Dictionary(uniqueKeysWithValues: stages.indices.map { stage in (stages[stage], summary(one.samples.map { $0.stages[stage] })) })
        },
        "quantiles": each { one in
            let sorted = one.samples.map { $0.total }.sorted()
            return (0...100).map { rounded(1000 * quantile(sorted, Double($0) / 100)) }
        },
        "queries": each { $0.samples.count },
        "seconds": each { rounded($0.total) },
        "tokens": each { one in
            let count = Double(one.samples.count)
            return [
                "mean": rounded(Double(one.samples.reduce(0) { $0 + $1.tokens }) / count),
                "positions": rounded(Double(one.samples.reduce(0) { $0 + $1.positions }) / count),
            ]
        },
        "lengths": timed.map { $0.reader.settings.config.lengths.max() ?? 0 },
        "load_seconds": each { ["cold": rounded($0.loads[0]), "warm": rounded($0.loads[1])] },
        "first_run_seconds": each { ["cold": rounded($0.firsts[0]), "warm": rounded($0.firsts[1])] },
        "bytes": each { ["package": $0.bytes] },
        "ratios": ratios(0.5) { $0.total },
        "p90_ratios": ratios(0.9) { $0.total },
        "forward_ratios": ratios(0.5) { $0.stages[1] },
        "engines": each { "\($0.engine) \(system)" },
        "threads": NSNull(),
        "device": device,
    ]
    return [
        "schema": 1,
        "kind": "latency",
        "name": "\(timed.map { $0.manifest.name }.joined(separator: " ")) golden \(computeUnit) \(mode.rawValue)",
        "subjects": timed.map { one -> [String: Any] in
            [
                "name": one.manifest.name, "role": one.manifest.name, "sha256": one.manifest.parent ?? "", "engine": one.engine, "version": system,
                "precision": one.reader.settings.config.scheme,
            ]
        },
        "data": [["name": "golden.json", "sha256": golden.sha256, "count": golden.count, "split": "other"] as [String: Any]],
        "command": "timeQuestions(golden:of:mode: .\(mode.rawValue)) of Timing.swift",
        "created": ISO8601DateFormatter().string(from: Date()),
        "environment": ["cpu": deviceName(), "cores": ProcessInfo.processInfo.activeProcessorCount, "os": system] as [String: Any],
        "results": results,
        "not_checked": ["cold starts: \"cold\" is the first load of this process, whose files the system may have held in memory"],
    ]
}

private func summary(_ seconds: [Double]) -> [String: Any] {
    let sorted = seconds.sorted()
    let mean = 1000 * seconds.reduce(0, +) / Double(seconds.count)
    let parts = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99)].map { ($0, rounded(1000 * quantile(sorted, $1))) }
    return ["count": seconds.count, "mean": rounded(mean), "unit": "ms"].merging(parts) { $1 }
}

/// How many times longer the first takes than the second, by a quantile, and its 95 % bootstrap interval over pairs.
private func ratio(_ first: [Double], _ second: [Double], _ share: Double) -> [String: Double] {
    var chance = Chance(state: 1)
    let drawn = (0..<resamples).map { _ -> Double in
        let picked = first.indices.map { _ in Int.random(in: first.indices, using: &chance) }
        return quantile(picked.map { first[$0] }.sorted(), share) / quantile(picked.map { second[$0] }.sorted(), share)
    }.sorted()
    let value = quantile(first.sorted(), share) / quantile(second.sorted(), share)
    return ["value": rounded(value), "low": rounded(min(value, quantile(drawn, 0.025))), "high": rounded(max(value, quantile(drawn, 0.975)))]
}

/// Of sorted values, linear between two of them (numpy's default).
private func quantile(_ sorted: [Double], _ share: Double) -> Double {
    let place = share * Double(sorted.count - 1)
    let below = Int(place)
    let above = min(below + 1, sorted.count - 1)
    return sorted[below] + (place - Double(below)) * (sorted[above] - sorted[below])
}

private func rounded(_ value: Double) -> Double {
    return (value * 10_000).rounded() / 10_000
}

private func now() -> Double {
    return Double(DispatchTime.now().uptimeNanoseconds) / 1e9
}

/// What Core ML leaves behind a question is freed before the next one.
private func pooled<T>(_ work: () throws -> T) rethrows -> T {
    #if canImport(ObjectiveC)
    return try autoreleasepool(invoking: work)
    #else
    return try work()
    #endif
}

/// SplitMix64, so that the order of questions is the same each time.
private struct Chance: RandomNumberGenerator {
    var state: UInt64

    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var mixed = (state ^ (state >> 30)) &* 0xBF58_476D_1CE4_E5B9
        mixed = (mixed ^ (mixed >> 27)) &* 0x94D0_49BB_1331_11EB
        return mixed ^ (mixed >> 31)
    }
}

// MARK: - Device

private let thermalStates = ["nominal", "fair", "serious", "critical"]

/// Its place in `thermalStates`.
private func thermalState() -> Int {
    #if canImport(Darwin)
    return ProcessInfo.processInfo.thermalState.rawValue
    #else
    return 0
    #endif
}

#if os(iOS) && !targetEnvironment(simulator) && !targetEnvironment(macCatalyst)
private let isPhone = !ProcessInfo.processInfo.isiOSAppOnMac
#else
private let isPhone = false
#endif

/// "iPhone9,2", as Apple numbers them.
private func deviceName() -> String {
    if let simulated = ProcessInfo.processInfo.environment["SIMULATOR_MODEL_IDENTIFIER"] { return "Simulator of \(simulated)" }
    var system = utsname()
    uname(&system)
    return withUnsafeBytes(of: &system.machine) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
}

private func operatingSystem() -> String {
    #if os(iOS)
    let name = "iOS"
    #elseif os(macOS)
    let name = "macOS"
    #else
    let name = "other"
    #endif
    let version = ProcessInfo.processInfo.operatingSystemVersion
    return "\(name) \(version.majorVersion).\(version.minorVersion).\(version.patchVersion)"
}

/// Bytes of the model as it lies on the device: Core ML's compiled one where there is one.
private func modelBytes(_ folder: URL, _ package: String) throws -> Int {
    let files = FileManager.default
    let compiled = (package as NSString).deletingPathExtension + ".mlmodelc"
    let inApp = Bundle.main.url(forResource: compiled, withExtension: nil)
    let places = [folder.appendingPathComponent(compiled), folder.appendingPathComponent(package)] + (inApp.map { [$0] } ?? [])
    guard let model = places.first(where: { files.fileExists(atPath: $0.path) }) else {
        throw QuestionError.badBundle("no \(package) and no \(compiled) in \(folder.path)")
    }
    let inside = try files.subpathsOfDirectory(atPath: model.path).map { model.appendingPathComponent($0).path }
    return try (inside.isEmpty ? [model.path] : inside).reduce(0) { sum, path in
        let attributes = try files.attributesOfItem(atPath: path)
        let size = (attributes[.size] as? NSNumber)?.intValue ?? 0
        return sum + (attributes[.type] as? FileAttributeType == .typeRegular ? size : 0)
    }
}
