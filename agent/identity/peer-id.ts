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

/** The key in a peer id; undefined for text that is none, or one of another kind of key, which is no publisher's. */
export function publisherOf(peerId: string): Uint8Array | undefined {
  try {
    const id = peerIdFromString(peerId)
    return id.type === 'Ed25519' ? id.publicKey.raw : undefined
  } catch {
    return undefined
  }
}
