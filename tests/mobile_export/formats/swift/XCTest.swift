// As much of XCTest as HOWTO.md names.
@_exported import Foundation  // as Apple's does

open class XCTestCase: NSObject {
    public func add(_ attachment: XCTAttachment) {}
}

public final class XCTAttachment {
    public enum Lifetime { case keepAlways, deleteOnSuccess }
    public var name: String?
    public var lifetime = Lifetime.deleteOnSuccess
    public init(data: Data, uniformTypeIdentifier: String) {}
}

public func XCTUnwrap<T>(_ value: @autoclosure () throws -> T?) throws -> T { return try value()! }
public func XCTAssertEqual<T: Equatable>(_ first: @autoclosure () throws -> T, _ second: @autoclosure () throws -> T) {}
