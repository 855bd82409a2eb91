/**
 * Why paths that peers publish are not handed to the local Nix: told to people once in a while for each artifact, and to whoever asks each
 * time.
 */
import type { NixArtifactBody } from '../../protocols/artifact/artifact.ts'
import type { Log } from '../log.ts'
import type { PublishedPath } from './closures.ts'
import { isSignedBy, parsePublicKey } from './signing.ts'
import type { Verdict } from './trust.ts'

/** A publisher's fault is told once in this time for each of his artifacts, however many of its paths are asked for. */
const FAULT_MS = 60_000
const FAULTS_MAX = 1_000

/** An artifact that may have the path in question, by its prefix, and the network that it is published in, by its id in hex. */
export type Candidate = {
  peerId: string
  name: string
  body: Pick<NixArtifactBody, 'cid' | 'root' | 'signatures' | 'signer'>
  network: string
}

/** Who says what a path is, and where: `about` tells what he says apart, `signer` is the key that he signs with, if it is one. */
export type Teller = { peerId: string; network: string; about: string; signer: string }

/** Of an artifact. */
export function tellerOf({ peerId, network, body }: Candidate): Teller {
  return { peerId, network, about: body.cid.toString(), signer: body.signer }
}

/** Why a path that a peer publishes is not handed to the local Nix. */
export type PathFault = {
  peerId: string
  path: string
  code: 'untrusted' | 'forged' | 'malformed'
  /** A sentence about the path, for people. */
  reason: string
  /** What the user can do, if anything. */
  next: string | undefined
}

export type Fault = Omit<PathFault, 'peerId'>

export class PathFaults {
  readonly #onFault: (fault: PathFault) => void
  readonly #now: () => number
  readonly #log: Log
  /** When it was told last. */
  readonly #told = new Map<string, number>()

  constructor(onFault: (fault: PathFault) => void, now: () => number, log: Log) {
    this.#onFault = onFault
    this.#now = now
    this.#log = log
  }

  /** Adds to the reasons of this answer, and tells of it if that is due. */
  tell({ peerId, about }: Teller, fault: Fault, refusals: string[]): void {
    refusals.push(`${peerId}: ${fault.path}: ${fault.reason}`)
    const key = `${peerId} ${about} ${fault.code}`
    const told = this.#told.get(key)
    if (told !== undefined && this.#now() - told < FAULT_MS) return
    if (this.#told.size >= FAULTS_MAX) this.#told.clear()
    this.#told.set(key, this.#now())
    this.#log.warn({ peerId, ...fault }, 'nix.refused')
    this.#onFault({ peerId, ...fault })
  }
}

export function faultOf({ signer }: Teller, entry: PublishedPath, verdict: Extract<Verdict, { ok: false }>): Fault {
  const { fault: code, reason } = verdict
  return { path: entry.path, code, reason, next: code === 'untrusted' ? adviceOn(signer, entry) : undefined }
}

/** To trust the publisher's key helps only if it is a key, and signed the path. */
function adviceOn(signer: string, entry: PublishedPath): string | undefined {
  try {
    const key = parsePublicKey(signer)
    const signed = entry.signatures.some((signature) => isSignedBy(key, entry, signature))
    return signed ? `If you trust who built it: \`agent trust add ${key.text}\`` : undefined
  } catch {
    return undefined
  }
}
