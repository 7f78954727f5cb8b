// As much of ExecuTorch's Swift as HOWTO.md names.
public protocol ValueConvertible {}

public final class Tensor<T>: ValueConvertible {
    public init(_ scalars: [T], shape: [Int]) {}
    public func scalars() -> [T] { return [] }
}

public struct Value {
    public func tensor<T>() -> Tensor<T>? { return nil }
}

public final class Module {
    public init(filePath: String) {}
    public func execute(_ method: String, _ inputs: [ValueConvertible]) throws -> [Value] { return [] }
}
