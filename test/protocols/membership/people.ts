/** A network with its root key, its members and its delegates, in memory: what the tests of membership, hello and gate are made of. */
import { generateKeyPairSync, type KeyObject, randomBytes, sign } from 'node:crypto'
import type { Credentials, Party } from '../../../protocols/hello/hello.ts'
import {
  type CertificateFields,
  type Chain,
  type Delegation,
  type DelegationFields,
  issueCertificate,
  issueDelegation,
} from '../../../protocols/membership/certificate.ts'
import { networkOf } from '../../../protocols/membership/network.ts'
import { issueRevocation, Revocations } from '../../../protocols/membership/revocation.ts'
import type { StatementSigner } from '../../../protocols/membership/statement.ts'

export const NOW = Date.UTC(2026, 5, 1)
export const HOUR = 3_600_000

export type Key = StatementSigner & { readonly privateKey: KeyObject }

export function makeKey(): Key {
  const { privateKey, publicKey } = generateKeyPairSync('ed25519')
  return {
    publicKey: Uint8Array.from(Buffer.from(publicKey.export({ format: 'jwk' }).x ?? '', 'base64url')),
    privateKey,
    sign: (bytes) => sign(null, bytes, privateKey),
  }
}

export class TestNetwork {
  readonly root = makeKey()
  readonly id = Uint8Array.from(networkOf(this.root.publicKey))
  readonly secret = Uint8Array.from(randomBytes(32))
  readonly revocations = new Revocations(this.id)
  readonly now: number

  constructor(now = NOW) {
    this.now = now
  }

  certify(
    subject: Uint8Array,
    fields: Partial<CertificateFields> = {},
    issuer: StatementSigner = this.root,
    by?: Delegation,
  ): Chain {
    const { v: _v, issuer: _issuer, ...given } = { ...fields }
    const { now } = this
    const defaults = {
      network: this.id,
      subject,
      name: 'web1',
      labels: {},
      issued: now,
      notBefore: now,
      notAfter: now + HOUR,
    }
    return issueCertificate({ ...defaults, ...given }, issuer, by)
  }

  delegate(subject: Uint8Array, fields: Partial<DelegationFields> = {}, root: StatementSigner = this.root): Delegation {
    const { v: _v, issuer: _issuer, ...given } = { ...fields }
    const { now } = this
    const times = { issued: now - HOUR, notBefore: now - HOUR, notAfter: now + 24 * HOUR, lifetimeMsMax: HOUR }
    return issueDelegation({ network: this.id, subject, may: ['issue', 'revoke'], ...times, ...given }, root)
  }

  revoke(key: Uint8Array, fields: { scope?: 'member' | 'issuer'; issuedAfter?: number; issued?: number } = {}): void {
    const { scope = 'member', issued = this.now, ...rest } = fields
    this.revocations.add(issueRevocation({ network: this.id, key, scope, issued, ...rest }, this.root).bytes)
  }

  credentials(chain: Chain): Credentials {
    return { network: this.id, secret: this.secret, chain }
  }

  /** Somebody who is in this network. */
  member(fields: Partial<CertificateFields> = {}, key = makeKey()): TestParty {
    return new TestParty(key).join(this, this.certify(key.publicKey, fields))
  }
}

/** A node as the hello sees it; everything can be changed. */
export class TestParty implements Party {
  readonly key: Key
  readonly credentials: Credentials[] = []
  readonly known = new Map<string, Revocations>()
  open = false
  clock: number

  constructor(key = makeKey(), clock = NOW) {
    this.key = key
    this.clock = clock
  }

  join(network: TestNetwork, chain = network.certify(this.key.publicKey)): this {
    this.credentials.push(network.credentials(chain))
    this.known.set(hex(network.id), network.revocations)
    this.clock = network.now
    return this
  }

  networks(): readonly Credentials[] {
    return this.credentials
  }

  isOpen(): boolean {
    return this.open
  }

  revocations(network: Uint8Array): Revocations {
    return this.known.get(hex(network)) ?? new Revocations(network)
  }

  now(): number {
    return this.clock
  }
}

export function hex(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString('hex')
}
