/**
 * A backup of a node, without its blobs: an age file with a passphrase, in it a gzipped tar. The first file of that, backup.json, says whose it is and
 * what follows, with a hash for each; so people can open one with `age -d | tar xz`, and what is damaged or cut off is noticed.
 *
 * `node.key` and the other keys are files of the state directory, as are the databases; root keys are below `networks/`, the configuration is
 * `config/agent.toml`.
 */
import { z } from 'zod'

export const MANIFEST = 'backup.json'
export const CONFIG_FILE = 'config/agent.toml'
/** Root keys and databases of networks are in it; other directories are content. */
export const KEY_DIRECTORY = 'networks'
/** Of the manifest. */
export const MANIFEST_BYTES_MAX = 4 * 1024 * 1024
/** Of all files together: a database of 256 MiB for the open network and for each of some closed ones. More is somebody's bomb. */
export const BACKUP_BYTES_MAX = 64 * 1024 * 1024 * 1024

/** Files of the state directory itself, of root keys, and the configuration: no name leads elsewhere. */
const NAME = /^(?:(?:networks|config)\/)?[A-Za-z0-9][A-Za-z0-9._-]{0,89}$/

const manifestSchema = z.strictObject({
  v: z.literal(1),
  /** Of the agent that made it. */
  version: z.string().max(100),
  peerId: z.string().regex(/^[0-9A-Za-z]{40,70}$/),
  name: z.string().max(128),
  made: z.iso.datetime(),
  /** How far the tables have come, by part: of all databases together the newest. */
  schema: z.record(z.string().max(100), z.int().min(0)),
  files: z
    .array(
      z.strictObject({
        name: z.string().regex(NAME),
        sizeBytes: z.int().min(0),
        sha256: z.string().regex(/^[0-9a-f]{64}$/),
      }),
    )
    .max(9_999),
})

export type BackupManifest = z.infer<typeof manifestSchema>

/** @throws when it is not one */
export function readManifest(text: string): BackupManifest {
  const manifest = manifestSchema.parse(JSON.parse(text))
  const names = new Set(manifest.files.map(({ name }) => name))
  if (names.size !== manifest.files.length) throw new Error('it names a file twice')
  if (!names.has('node.key')) throw new Error('there is no node key in it')
  return manifest
}
