// As much of Core ML as QuestionAnswering.swift names, so that it can be compiled where there is none.
import Foundation

public enum MLComputeUnits: Sendable { case cpuOnly, cpuAndGPU, all, cpuAndNeuralEngine }
public enum MLMultiArrayDataType { case int32 }

public struct MLModelMetadataKey: Hashable, Sendable {
    public static let creatorDefinedKey = MLModelMetadataKey()
}

public final class MLModelDescription {
    public var metadata: [MLModelMetadataKey: Any] { return [:] }
}

public final class MLModelConfiguration {
    public var computeUnits = MLComputeUnits.all
    public init() {}
}

public final class MLMultiArray {
    public var count: Int { return 0 }
    public init(shape: [NSNumber], dataType: MLMultiArrayDataType) throws {}
    public subscript(index: Int) -> NSNumber {
        get { return 0 }
        set {}
    }
}

public final class MLFeatureValue {
    public var multiArrayValue: MLMultiArray? { return nil }
    public init(multiArray: MLMultiArray) {}
}

public protocol MLFeatureProvider {
    func featureValue(for featureName: String) -> MLFeatureValue?
}

public final class MLDictionaryFeatureProvider: MLFeatureProvider {
    public init(dictionary: [String: Any]) throws {}
    public func featureValue(for featureName: String) -> MLFeatureValue? { return nil }
}

public final class MLModel {
    public var modelDescription: MLModelDescription { return MLModelDescription() }
    public init(contentsOf url: URL, configuration: MLModelConfiguration) throws {}
    public func prediction(from input: MLFeatureProvider) throws -> MLFeatureProvider { return input }
    public static func compileModel(at url: URL) throws -> URL { return url }
}
