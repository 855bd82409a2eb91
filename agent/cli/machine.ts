/** What commands look up on the machine that they run on: programs, files, its resolver. Tests give another one. */
import { execFile } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { userInfo } from 'node:os'

/** These read a few files; slower, they hang on something that is not ours to find. */
const ANSWER_MS_MAX = 10_000
const OUTPUT_BYTES_MAX = 4 * 1024 * 1024

export type Machine = {
  /** What a program prints; undefined when it is not there, null when it could not do it. */
  run(
    command: string,
    args: readonly string[],
    env?: Readonly<Record<string, string>>,
  ): Promise<string | null | undefined>
  /** The text of a file; undefined when there is none, or it may not be read. */
  read(path: string): string | undefined
  exists(path: string): boolean
  /** Whether the machine's resolver finds a zone. */
  hasZone(name: string): Promise<boolean>
  user(): string
}

export const thisMachine: Machine = {
  run: (command, args, env = {}) =>
    new Promise((resolve) => {
      const options = { timeout: ANSWER_MS_MAX, maxBuffer: OUTPUT_BYTES_MAX, env: { ...process.env, ...env } }
      execFile(command, args, options, (error, stdout) => {
        if (error === null) resolve(stdout)
        else resolve((error as NodeJS.ErrnoException).code === 'ENOENT' ? undefined : null)
      })
    }),
  read: (path) => {
    try {
      return readFileSync(path, 'utf8')
    } catch {
      return undefined
    }
  },
  exists: existsSync,
  hasZone: async (name) => {
    const { Resolver } = await import('node:dns/promises')
    return await new Resolver({ timeout: 1_500, tries: 1 }).resolveSoa(name).then(
      () => true,
      () => false,
    )
  },
  user: () => userInfo().username,
}
