/**
 * Real store paths for tests, and a second store that receives them: both made with the Nix that is installed, without nixpkgs and
 * without a network. Each closure is unique, so that no test sees another's answers; disposing deletes what was made.
 */
import { execFile, execFileSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { existsSync } from 'node:fs'
import { copyFile, mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'

const run = promisify(execFile)

/** Where distributions put a static busybox, which makes directories even in Nix's sandbox; without it there are only plain files. */
const BUSYBOX = ['/bin/busybox', '/usr/bin/busybox', '/usr/local/bin/busybox'].find((path) => existsSync(path))
/** A whole closure is built within this, on a busy machine. */
const BUILD_MS_MAX = 120_000
const OUTPUT_BYTES_MAX = 64 * 1024 * 1024

/** Whether there is a Nix to test with; says so once where there is none. */
export const hasNix = (() => {
  try {
    execFileSync('nix-store', ['--version'], { stdio: 'ignore' })
    return true
  } catch {
    console.warn('Nix is not installed: tests with real store paths are skipped')
    return false
  }
})()

/** Options that keep Nix off the network and out of the machine's configuration. */
const OFFLINE = ['--option', 'substituters', '', '--option', 'sandbox', 'false']

export type ClosureOptions = {
  /** How many store paths, the root included. Each refers to the one before it and to one half-way, some to themselves. */
  paths?: number
  /** Bytes of a file in each path. */
  bytesEach?: number
  /** Bytes of a file in the root alone. */
  bytesInRoot?: number
  name?: string
}

export class NixClosure implements AsyncDisposable {
  readonly root: string
  /** All paths, sorted. */
  readonly paths: readonly string[]

  private constructor(root: string, paths: readonly string[]) {
    this.root = root
    this.paths = paths
  }

  static async make({
    paths = 3,
    bytesEach = 100,
    bytesInRoot = 0,
    name = 'undernet-test',
  }: ClosureOptions = {}): Promise<NixClosure> {
    const directory = await mkdtemp(join(tmpdir(), 'nix-closure-'))
    try {
      const file = join(directory, 'default.nix')
      await mkdir(join(directory, 'tools'))
      if (BUSYBOX) await copyFile(BUSYBOX, join(directory, 'tools', 'busybox'))
      await writeFile(file, expression(paths, bytesEach, bytesInRoot, name))
      const { stdout: built } = await nix('nix-build', ['-Q', '--no-out-link', '--max-jobs', '2', ...OFFLINE, file])
      const root = built.trim()
      const { stdout: closure } = await nix('nix-store', ['--query', '--requisites', root])
      return new NixClosure(root, closure.trim().split('\n').sort())
    } finally {
      await rm(directory, { recursive: true, force: true })
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    // What a test still uses is not deleted; the next garbage collection takes it.
    await nix('nix-store', ['--delete', ...this.paths]).catch(() => {})
  }
}

/** `maxJobs` is how many NARs Nix takes at a time, 1 if it is not told; `namespace` is the network namespace that it runs in. */
type Substituters = { substituters: string[]; keys: string[]; maxJobs?: number; namespace?: string | undefined }
export type Realised = { ok: boolean; stderr: string; ms: number }

/** A store of its own, with a cache of answers of its own, as on another machine. */
export class SecondStore implements AsyncDisposable {
  readonly directory: string

  private constructor(directory: string) {
    this.directory = directory
  }

  static async make(): Promise<SecondStore> {
    return new SecondStore(await mkdtemp(join(tmpdir(), 'nix-second-')))
  }

  /** Runs `nix-store --realise` in this store, with nothing to take from but `substituters`, trusting `keys` alone. */
  async realise(path: string, { substituters, keys, maxJobs = 1, namespace }: Substituters): Promise<Realised> {
    const started = performance.now()
    const options = {
      substituters: substituters.join(' '),
      'trusted-public-keys': keys.join(' '),
      'max-jobs': `${maxJobs}`,
      sandbox: 'false',
    }
    const flags = Object.entries(options).flatMap(([key, value]) => ['--option', key, value])
    const within = namespace === undefined ? [] : ['ip', 'netns', 'exec', namespace]
    const [command = '', ...words] = [...within, 'nix-store', '--store', this.directory, '--realise', path, ...flags]
    const result = await nix(command, words, {
      XDG_CACHE_HOME: join(this.directory, 'cache'),
    }).then(
      ({ stderr }) => ({ ok: true, stderr }),
      (error: { stderr?: string }) => ({ ok: false, stderr: error.stderr ?? 'it did not run' }),
    )
    return { ...result, ms: performance.now() - started }
  }

  /** Where the files of a store path are in this store. */
  place(path: string): string {
    return join(this.directory, path)
  }

  has(path: string): boolean {
    return existsSync(this.place(path))
  }

  /** A path and all that it needs, by this store's own database, sorted. */
  async requisites(path: string): Promise<string[]> {
    const { stdout } = await nix('nix-store', ['--store', this.directory, '--query', '--requisites', path])
    return stdout.trim().split('\n').sort()
  }

  /** What a path refers to, by this store's own database, sorted. */
  async references(path: string): Promise<string[]> {
    const { stdout } = await nix('nix-store', ['--store', this.directory, '--query', '--references', path])
    return stdout.trim().split('\n').filter(Boolean).sort()
  }

  /** Recomputes the hash of every path; the names of those that are not what was signed. */
  async verify(): Promise<string> {
    const { stderr } = await nix('nix-store', ['--store', this.directory, '--verify', '--check-contents'])
    return stderr
  }

  /** Forgets what substituters answered. */
  async forgetAnswers(): Promise<void> {
    await rm(join(this.directory, 'cache'), { recursive: true, force: true })
  }

  async [Symbol.asyncDispose](): Promise<void> {
    // Nix takes the write permission of what is in a store, and with it the owner's right to delete.
    await run('chmod', ['-R', 'u+w', this.directory]).catch(() => {})
    await rm(this.directory, { recursive: true, force: true })
  }
}

/** The bytes of `nix-store --dump`. */
export async function dump(path: string): Promise<Buffer> {
  const { stdout } = await run('nix-store', ['--dump', path], { encoding: 'buffer', maxBuffer: OUTPUT_BYTES_MAX })
  return stdout
}

function nix(
  command: string,
  args: string[],
  env: Record<string, string> = {},
): Promise<{ stdout: string; stderr: string }> {
  return run(command, args, {
    env: { ...process.env, ...env },
    timeout: BUILD_MS_MAX,
    maxBuffer: OUTPUT_BYTES_MAX,
  })
}

/** The tools are copied to the store, where a sandboxed builder sees them; they are not part of the closure. */
function expression(paths: number, bytesEach: number, bytesInRoot: number, name: string): string {
  return `
let
  all = builtins.genList make ${paths};
  make = number: derivation {
    name = "${name}-\${toString number}";
    system = builtins.currentSystem;
    builder = ${BUSYBOX ? '(tools + "/busybox")' : '"/bin/sh"'};
    args = ${BUSYBOX ? '[ "sh" "-c" script ]' : '[ "-c" script ]'};
    salt = "${randomBytes(8).toString('hex')}";
    number = toString number;
    bytes = toString (if number == ${paths - 1} then ${Math.max(bytesInRoot, bytesEach)} else ${bytesEach});
    references = if number == 0 then [] else map (builtins.elemAt all) [ (number - 1) (number / 2) ];
    ${BUSYBOX ? 'busybox = tools + "/busybox";' : ''}
  };
  tools = builtins.path { path = ./tools; name = "undernet-test-tools"; };
  script = ''${BUSYBOX ? DIRECTORY_SCRIPT : FILE_SCRIPT}'';
in builtins.elemAt all ${paths - 1}
`
}

const DIRECTORY_SCRIPT = `
  set -e
  $busybox mkdir -p $out/bin $out/share
  echo "#!/bin/sh" > $out/bin/hello
  echo "echo hello $number" >> $out/bin/hello
  $busybox chmod +x $out/bin/hello
  $busybox ln -s hello $out/bin/hi
  echo $references > $out/share/references
  if [ $(($number % 3)) = 0 ]; then echo $out > $out/share/self; fi
  echo $salt-$number > $out/share/salt
  $busybox yes $salt-$number | $busybox head -c $bytes > $out/share/data
`
const FILE_SCRIPT = 'echo $salt-$number $references > $out'
