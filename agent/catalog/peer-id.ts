/**
 * A publisher's two names: 32 bytes on the wire and in the database, a peer id (12D3Koo...) for people and for libp2p.
 */
import { publicKeyFromRaw } from '@libp2p/crypto/keys'
import { peerIdFromPublicKey, peerIdFromString } from '@libp2p/peer-id'

export function peerIdOf(publisher: Uint8Array): string {
  const key = publicKeyFromRaw(publisher)
  if (key.type !== 'Ed25519') throw new TypeError('a raw key of 32 bytes is Ed25519')
  return peerIdFromPublicKey(key).toString()
}

/** Undefined for what is not the peer id of an Ed25519 key. */
export function publisherOf(peerId: string): Uint8Array | undefined {
  try {
    const { type, publicKey } = peerIdFromString(peerId)
    return type === 'Ed25519' ? publicKey?.raw : undefined
  } catch {
    return undefined
  }
}
