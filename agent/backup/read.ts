/** Reads a backup: opens it with its passphrase, and holds every file of it against the hash that the first one says. */
import { createHash } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { Readable } from 'node:stream'
import { createGunzip } from 'node:zlib'
import { AgentError, reasonOf } from '../error.ts'
import { PassphraseIdentity, wrongPassphrase } from '../identity/passphrase.ts'
import { readTar } from '../tar.ts'
import { BACKUP_BYTES_MAX, type BackupManifest, MANIFEST, MANIFEST_BYTES_MAX, readManifest } from './format.ts'

/** Takes the bytes of a file, which are not known to be right before all of the backup was read. */
export type Keep = (name: string, bytes: AsyncIterable<Uint8Array>) => Promise<void>

/**
 * Resolves when all of it was read, and is what it says. `judge` is told whose it is before anything is kept.
 *
 * @throws {AgentError} `not-allowed` for another passphrase, `corrupt` for what is no backup, or not a whole one; what `judge` and `keep` throw
 */
export async function readBackup(
  path: string,
  passphrase: string,
  keep: Keep = drain,
  judge: (manifest: BackupManifest) => void = () => undefined,
): Promise<BackupManifest> {
  const { Decrypter } = await import('age-encryption')
  const identity = new PassphraseIdentity(passphrase)
  const decrypter = new Decrypter()
  decrypter.addIdentity(identity)
  const sealed = createReadStream(path)
  /** What is thrown by others is not a fault of the file. */
  let theirs: unknown
  const minding = async (work: () => Promise<void> | void) => {
    try {
      await work()
    } catch (error) {
      if (!(error instanceof DamagedError)) theirs = error
      throw error
    }
  }
  try {
    const opened = await decrypter.decrypt(Readable.toWeb(sealed) as ReadableStream<Uint8Array>)
    const files = readTar(unzipped(Readable.fromWeb(opened as Parameters<typeof Readable.fromWeb>[0])))
    const first = (await files.next()).value
    if (first?.name !== MANIFEST || first.sizeBytes > MANIFEST_BYTES_MAX)
      throw new Error('it does not begin as a backup does')
    const chunks: Uint8Array[] = []
    for await (const chunk of first.bytes) chunks.push(chunk)
    const manifest = readManifest(Buffer.concat(chunks).toString())
    await minding(() => judge(manifest))
    const wanted = [...manifest.files]
    if (wanted.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0) > BACKUP_BYTES_MAX) throw new Error('it is too large')
    for await (const file of files) {
      const said = wanted.shift()
      if (said?.name !== file.name || said.sizeBytes !== file.sizeBytes)
        throw new Error('it has other files than it says')
      await minding(() => keep(file.name, checked(file.bytes as AsyncIterable<Uint8Array>, said)))
    }
    if (wanted.length > 0) throw new Error('it ends too early')
    return manifest
  } catch (cause) {
    if (theirs !== undefined) throw theirs
    if (identity.isWrong) throw wrongPassphrase(cause)
    if ((cause as NodeJS.ErrnoException).syscall !== undefined) throw cause
    throw new AgentError('corrupt', `${path} is not a backup of an agent, or it is damaged: ${firstLine(cause)}`, {
      cause,
      next: 'Give a file that `agent backup` wrote, whole.',
    })
  } finally {
    sealed.destroy()
  }
}

class DamagedError extends Error {}

async function drain(_name: string, bytes: AsyncIterable<Uint8Array>): Promise<void> {
  for await (const _ of bytes) {
    // Reading them is what checks them.
  }
}

async function* checked(bytes: AsyncIterable<Uint8Array>, said: { name: string; sha256: string }) {
  const hash = createHash('sha256')
  try {
    for await (const chunk of bytes) {
      hash.update(chunk)
      yield chunk
    }
  } catch (cause) {
    throw new DamagedError(reasonOf(cause), { cause })
  }
  if (hash.digest('hex') !== said.sha256) throw new DamagedError(`${said.name} is not what it was`)
}

/** What breaks off before breaks this off, too. */
async function* unzipped(opened: Readable): AsyncGenerator<Uint8Array> {
  const unzip = createGunzip()
  opened.on('error', (error) => unzip.destroy(error))
  for await (const chunk of opened.pipe(unzip)) yield chunk as Uint8Array
}

/** zod's are lists. */
function firstLine(cause: unknown): string {
  return cause instanceof Error && cause.name === 'ZodError' ? 'its list of files is not in order' : reasonOf(cause)
}
