/**
 * The root keys of networks that this node has: `<state>/networks/<network id>.root`, PKCS #8 PEM, for the owner only.
 *
 * A network is made of a row in the database and a key file, and a crash may come between the two. So the file is first written under a
 * name that says that nothing is settled, then comes the row, then the file's real name; leaving a network goes the same way back. What
 * `recover` finds unsettled at the next start belongs to a network if there is a row, and to a network that nobody was told of if not.
 * A settled key without a row means that the database was lost: it is kept, and told of.
 */
import { generateKeyPairSync, type KeyObject } from 'node:crypto'
import { existsSync, mkdirSync, readdirSync, renameSync, unlinkSync } from 'node:fs'
import { join } from 'node:path'
import { networkOf } from '../../protocols/membership/network.ts'
import { hexOf, type StatementSigner } from '../../protocols/membership/statement.ts'
import { AgentError, reasonOf } from '../error.ts'
import type { Log } from '../log.ts'
import { readKeyFile, signerOf, syncDirectory, writeKeyFile } from './key-file.ts'

const IF_LOST = 'Restore it from a backup, or import the root key again from its export.'
const FILE = /^([0-9a-f]{64})\.root(\.unsettled)?$/
/** What a crash leaves of a file that was being written. */
const PARTIAL = /^[0-9a-f]{64}\.root(\.unsettled)?\.\d+\.new$/

type RootKey = { readonly signer: StatementSigner; readonly secret: KeyObject }

export class RootKeys {
  readonly #directory: string
  readonly #log: Log
  readonly #kept = new Map<string, RootKey>()

  constructor(directory: string, log: Log) {
    mkdirSync(directory, { recursive: true, mode: 0o700 })
    this.#directory = directory
    this.#log = log
  }

  /** Settles what a crash left, and loads all keys. Returns the networks whose root key is here though nothing else of them is. */
  recover(isNetwork: (id: string) => boolean): string[] {
    const orphans: string[] = []
    for (const name of readdirSync(this.#directory)) {
      if (PARTIAL.test(name)) unlinkSync(join(this.#directory, name))
      const [, id, unsettled] = FILE.exec(name) ?? []
      if (id === undefined) continue
      if (unsettled === undefined) {
        if (isNetwork(id)) this.#load(id)
        else orphans.push(id)
      } else if (isNetwork(id)) {
        this.settle(id)
        this.#load(id)
      } else unlinkSync(this.#path(id, true))
    }
    for (const id of orphans) this.#log.warn({ network: id, file: this.#path(id) }, 'network.root-orphaned')
    return orphans
  }

  /** A new key, not settled yet, and the id of its network. */
  make(): { id: string; network: Uint8Array; signer: StatementSigner } {
    const { privateKey } = generateKeyPairSync('ed25519')
    const key = rootKeyOf(privateKey)
    const network = networkOf(key.signer.publicKey)
    const id = hexOf(network)
    writeKeyFile(this.#path(id, true), privateKey)
    this.#kept.set(id, key)
    return { id, network, signer: key.signer }
  }

  /** The network is there: its key has its place. */
  settle(id: string): void {
    if (!existsSync(this.#path(id, true))) return
    renameSync(this.#path(id, true), this.#path(id))
    syncDirectory(this.#directory)
  }

  /** The network is about to go: `remove` follows, or `settle` when it stays after all. */
  unsettle(id: string): void {
    if (!existsSync(this.#path(id))) return
    renameSync(this.#path(id), this.#path(id, true))
    syncDirectory(this.#directory)
  }

  /**
   * Takes in a key from elsewhere. A file that could not be used makes room, and is kept beside it.
   *
   * @throws {AgentError} `corrupt` when it is not the network's
   */
  put(id: string, secret: KeyObject): void {
    const key = rootKeyOf(secret)
    if (hexOf(networkOf(key.signer.publicKey)) !== id)
      throw new AgentError('corrupt', 'this is not the root key of the network')
    if (this.#kept.has(id)) return
    const path = this.#path(id)
    if (existsSync(path)) renameSync(path, `${path}.unusable`)
    writeKeyFile(path, secret)
    this.#kept.set(id, key)
  }

  signer(id: string): StatementSigner | undefined {
    return this.#kept.get(id)?.signer
  }

  /** For the export. */
  secret(id: string): KeyObject | undefined {
    return this.#kept.get(id)?.secret
  }

  remove(id: string): void {
    for (const path of [this.#path(id), this.#path(id, true)]) if (existsSync(path)) unlinkSync(path)
    syncDirectory(this.#directory)
    this.#kept.delete(id)
  }

  /** A key that cannot be used is told of, and left as it is: the node is a member without it. */
  #load(id: string): void {
    const path = this.#path(id)
    try {
      const secret = readKeyFile(path, IF_LOST)
      const key = secret && rootKeyOf(secret)
      if (key === undefined) return
      if (hexOf(networkOf(key.signer.publicKey)) === id) this.#kept.set(id, key)
      else
        this.#log.error(
          { network: id, file: path, reason: 'it is the key of another network' },
          'network.root-unusable',
        )
    } catch (error) {
      this.#log.error({ network: id, file: path, reason: reasonOf(error) }, 'network.root-unusable')
    }
  }

  #path(id: string, unsettled = false): string {
    return join(this.#directory, `${id}.root${unsettled ? '.unsettled' : ''}`)
  }
}

function rootKeyOf(secret: KeyObject): RootKey {
  return { secret, signer: signerOf(secret) }
}
