// As much of CryptoKit as QuestionAnswering.swift names.
import Foundation

public enum SHA256 {
    public static func hash(data: Data) -> [UInt8] { return [] }
}
