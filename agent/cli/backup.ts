/**
 * `agent backup`: everything that makes this node itself, in one encrypted file: its key, its networks with their certificates and root keys, policies,
 * names, pins, what it published, its configuration. `agent restore` makes a node of it again.
 */
import { existsSync } from 'node:fs'
import { link, open, rm } from 'node:fs/promises'
import { dirname } from 'node:path'
import { AgentError } from '../error.ts'
import type { CommandLine } from './command-line.ts'
import { showSize } from './measures.ts'
import { newPassphrase, PASSPHRASE_FILE } from './passphrase.ts'

export function addBackup(line: CommandLine): void {
  const command = line
    .command({
      usage: 'backup <file>',
      summary: 'write an encrypted backup of this node: identity, networks, keys, policy, names, configuration',
      details:
        'The agent goes on meanwhile. Content is not in it: what this node published has to be here again, or with others. The file is an age file (age-encryption.org) with a tar.gz in it; who has it and its passphrase is this node, and owns the networks whose root keys are here.',
      examples: [
        ['backup node.age', 'asks for a passphrase, twice'],
        ['backup --passphrase-file pass "/backup/$(hostname)-$(date +%F).age"', 'for scripts'],
      ],
    })
    .option(...PASSPHRASE_FILE)
  type Options = { passphraseFile?: string }
  line.asks<[string], Options>(command, async (session, { passphraseFile }, file) => {
    const { client, terminal, isJson } = session
    if (existsSync(file)) throw exists(file)
    const passphrase = await newPassphrase(terminal, passphraseFile)
    const signal = session.interrupted()
    const { sizeBytes, peerId, files } = await writeBackup(file, passphrase, (words) =>
      client.download('backup', signal, words),
    )
    if (isJson) return terminal.json({ file, sizeBytes, peerId, files })
    terminal.print(`${file} has ${files} files of ${peerId}, ${showSize(sizeBytes)}. It was read back, and is whole.`)
    terminal.note('Keep it elsewhere, and the passphrase apart from it. `agent restore` makes this node of it again.')
  })
}

type Written = { sizeBytes: number; peerId: string; files: number }

/** The file is there whole and checked, for its owner only, or not at all. */
async function writeBackup(
  file: string,
  passphrase: string,
  download: (json: { passphrase: string }) => AsyncIterable<Uint8Array>,
): Promise<Written> {
  const partial = `${file}.${process.pid}.new`
  try {
    let sizeBytes = 0
    {
      await using out = await open(partial, 'wx', 0o600)
      for await (const chunk of download({ passphrase })) {
        await out.writeFile(chunk)
        sizeBytes += chunk.byteLength
      }
      await out.sync()
    }
    const { readBackup } = await import('../backup/read.ts')
    const { peerId, files } = await readBackup(partial, passphrase)
    // Never over another file: an older backup is worth keeping.
    await link(partial, file).catch((cause: NodeJS.ErrnoException) => {
      throw cause.code === 'EEXIST' ? exists(file) : cause
    })
    await using directory = await open(dirname(file), 'r')
    await directory.sync()
    return { sizeBytes, peerId, files: files.length }
  } finally {
    await rm(partial, { force: true })
  }
}

function exists(file: string): AgentError {
  return new AgentError('taken', `${file} exists`, {
    next: 'Give a file that does not, such as one with the date in its name.',
  })
}
