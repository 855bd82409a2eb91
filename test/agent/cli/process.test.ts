/** The program as a process: pipes that close, signals, standard input, shells that source its completion. */
import { execFileSync, spawn, spawnSync } from 'node:child_process'
import { mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import type { AgentApi } from '../../../agent/api/agent-api.ts'
import { artifact, serve } from '../api/fake-agent.ts'

const MAIN = join(import.meta.dirname, '../../../agent/main.ts')

let directory: string
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'undernet-process-'))
})
afterEach(() => rmSync(directory, { recursive: true, force: true }))

/** Runs a shell line in which `agent` is the program, without blocking the fake agent in this process. */
function shell(line: string, { env = {}, input = '' }: { env?: Record<string, string>; input?: string } = {}) {
  const script = `agent() { ${JSON.stringify(process.execPath)} ${JSON.stringify(MAIN)} "$@"; }\n${line}`
  const child = spawn('bash', ['-c', script], { env: { ...process.env, HOME: directory, NO_COLOR: '1', ...env } })
  // Most commands end without reading it.
  child.stdin.on('error', () => undefined)
  child.stdin.end(input)
  let out = ''
  let err = ''
  child.stdout.on('data', (chunk) => {
    out += chunk
  })
  child.stderr.on('data', (chunk) => {
    err += chunk
  })
  return new Promise<{ status: number | null; out: string; err: string }>((resolve) => {
    child.once('close', (status) => resolve({ status, out, err }))
  })
}

const many: AgentApi['search'] = () => ({
  artifacts: Array.from({ length: 500 }, (_, at) => ({
    ...artifact,
    name: `hello-${at}`,
    description: 'd'.repeat(900),
  })),
  truncated: false,
})

describe('output', () => {
  it('of which only the first line is read ends quietly', async () => {
    await using agent = await serve({ search: many })
    const { out, err } = await shell('agent search | head -1; echo "$PIPESTATUS"', {
      env: { UNDERNET_SOCKET: agent.socket },
    })
    expect(out).toMatch(/^NAME.*\n0\n$/)
    expect(err).toBe('')
  })

  it('arrives whole, however much it is', async () => {
    await using agent = await serve({ search: many })
    const { out, status } = await shell('agent search --json | (read -r first; sleep 0.3; cat)', {
      env: { UNDERNET_SOCKET: agent.socket },
    })
    expect(status).toBe(0)
    expect(JSON.parse(`{${out}`).artifacts).toHaveLength(500)
  })

  it('that cannot be stored is an error', async () => {
    await using agent = await serve()
    const { status, err } = await shell('agent status > /dev/full', { env: { UNDERNET_SOCKET: agent.socket } })
    expect(status).toBe(1)
    expect(err).toMatch(/cannot write the result/)
  })
})

describe('a process', () => {
  it('knows its version, and takes flags wherever they stand', async () => {
    expect(await shell('agent version')).toMatchObject({
      status: 0,
      out: expect.stringMatching(/^undernet \d+\.\d+\.\d+ \(Node 2/),
    })
    expect(await shell('agent --version')).toMatchObject({ status: 0, out: expect.stringMatching(/^undernet \d/) })
    expect((await shell('agent')).status).toBe(2)
  })

  it('publishes its standard input', async () => {
    const sizes: number[] = []
    await using agent = await serve({
      publishUpload: async (request, bytes) => {
        let sizeBytes = 0
        for await (const chunk of bytes) sizeBytes += chunk.byteLength
        sizes.push(sizeBytes)
        return { artifact: { ...artifact, ...request, description: '' }, announcedTo: 0 }
      },
    })
    const env = { UNDERNET_SOCKET: agent.socket }
    expect((await shell('agent publish - --name dump', { env, input: 'x'.repeat(200_000) })).status).toBe(0)
    expect(sizes).toEqual([200_000])
  })

  it('tidies up on Ctrl-C during get, says what remains, and the agent hears of it', async () => {
    const began = Promise.withResolvers<void>()
    const aborted = Promise.withResolvers<void>()
    await using agent = await serve({
      fetch: async () => ({ artifact, parts: [{ digest: 'ab'.repeat(32), sizeBytes: 1e9, kind: 'file' }] }),
      blob: async () => ({
        sizeBytes: 1e9,
        async *read(_offset, _length, signal) {
          signal.addEventListener('abort', () => aborted.resolve())
          for (;;) {
            yield Buffer.alloc(65_536)
            began.resolve()
            await new Promise((resolve) => setTimeout(resolve, 5))
          }
        },
      }),
    })
    const words = [MAIN, 'get', 'hello', '--to', join(directory, 'to'), '--socket', agent.socket]
    const child = spawn(process.execPath, words, { stdio: ['ignore', 'ignore', 'pipe'] })
    let err = ''
    child.stderr.on('data', (chunk) => {
      err += chunk
    })
    await began.promise
    await vi.waitUntil(() =>
      readdirSync(directory, { recursive: true }).some((name) => String(name).endsWith('.partial')),
    )
    child.kill('SIGINT')
    const status = await new Promise((resolve) => child.once('close', resolve))
    expect(status).toBe(130)
    expect(err).toMatch(/run the command again to go on/)
    expect(readdirSync(join(directory, 'to'))).toEqual([])
    await aborted.promise
  })

  it('loads neither libp2p nor the other heavy packages for what only asks', async () => {
    await using agent = await serve()
    const listing = join(directory, 'loaded.mjs')
    writeFileSync(
      listing,
      `import { registerHooks } from 'node:module'
registerHooks({ resolve(specifier, context, next) {
  if (!/^[./]|^node:|^file:/.test(specifier)) process.stderr.write('loads ' + specifier + '\\n')
  return next(specifier, context)
} })`,
    )
    const child = await shell(`"${process.execPath}" --import ${listing} ${MAIN} status`, {
      env: { UNDERNET_SOCKET: agent.socket },
    })
    expect(child.status).toBe(0)
    expect([...new Set(child.err.match(/loads \S+/g))]).toEqual(['loads commander'])
  })
})

const read = (program: string, words: string[]) => execFileSync(program, words, { encoding: 'utf8' })
const has = (name: string) => spawnSync(name, ['-c', 'true']).status === 0
for (const name of ['zsh', 'fish'].filter((one) => !has(one)))
  console.warn(`skipped: ${name} is not installed, so nobody reads its completion`)

describe('completion', () => {
  /** What bash offers after these words. */
  async function offered(line: string, socket = join(directory, 'no.sock')): Promise<string[]> {
    const words = line.split(' ')
    const { out } = await shell(
      `eval "$(agent completion bash)"; COMP_WORDS=(${words.map((word) => `'${word}'`).join(' ')}); COMP_CWORD=${words.length - 1}
_agent; printf '%s\\n' "\${COMPREPLY[@]}"`,
      { env: { UNDERNET_SOCKET: socket } },
    )
    return out.split('\n').filter((word) => word !== '')
  }

  it('offers commands, their commands, and their flags', async () => {
    expect(await offered('agent st')).toEqual(['start', 'status'])
    expect(await offered('agent trust ')).toEqual(expect.arrayContaining(['list', 'add', 'remove']))
    expect(await offered('agent search --li')).toEqual(['--limit'])
    expect(await offered('agent trust list --j')).toEqual(['--json'])
    expect(await offered('agent start --no')).toEqual([
      '--no-mdns',
      '--no-port-mapping',
      '--no-relay',
      '--no-punch',
      '--no-open',
    ])
  })

  it('offers names of artifacts, but none that a shell could take for more than a name', async () => {
    const names = ['hello', '$(touch pwned)', '`touch pwned`', 'a b', "';touch pwned;'", '*', 'hello-2.0', '-rf']
    await using agent = await serve({
      search: () => ({ artifacts: names.map((name) => ({ ...artifact, name })), truncated: false }),
    })
    expect(await offered('agent get he', agent.socket)).toEqual(['hello', 'hello-2.0'])
    expect((await offered('agent get ', agent.socket)).filter((word) => !word.startsWith('--'))).toEqual([
      'hello',
      'hello-2.0',
    ])
    expect(await offered('agent get x')).toEqual([])
  })

  it('offers names of networks and members where those are meant', async () => {
    await using agent = await serve()
    const plain = async (line: string) => (await offered(line, agent.socket)).filter((word) => !word.startsWith('-'))
    expect(await plain('agent network show ')).toEqual(['home', 'open'])
    expect(await plain('agent member revoke ')).toEqual(['apple', 'pear', 'quince'])
    expect(await plain('agent policy explain q')).toEqual(['quince'])
    expect(await plain('agent search --network ')).toEqual(['home', 'open'])
    expect(await plain('agent network ')).toEqual(expect.arrayContaining(['create', 'list', 'leave', 'export-root']))
  })

  it.skipIf(!has('fish'))('in fish offers commands, their commands, flags, and safe names', async () => {
    const { out: script } = await shell('agent completion fish')
    const file = join(directory, 'agent.fish')
    writeFileSync(file, `${script}\nfunction agent; echo hello; end\n`)
    const complete = (line: string) =>
      read('fish', ['--no-config', '-c', `source ${file}; complete -C '${line}'`])
        .split('\n')
        .map((one) => one.split('\t')[0])
        .filter((one) => one !== '')
    expect(complete('agent st')).toEqual(['start', 'status'])
    expect(complete('agent trust ')).toEqual(expect.arrayContaining(['list', 'add', 'remove']))
    expect(complete('agent trust list --j')).toEqual(['--json'])
    expect(complete('agent search --li')).toEqual(['--limit'])
    expect(complete('agent get he')).toEqual(['hello'])
    expect(complete('agent network sh')).toEqual(['share', 'show'])
    expect(complete('agent network show he')).toEqual(['hello'])
    expect(complete('agent network show --ne')).toEqual([])
    expect(complete('agent member list --ne')).toEqual(['--network'])
    expect(complete('agent member list --network he')).toEqual(['hello'])
  })

  it.skipIf(!has('zsh'))('in zsh offers commands, their commands, flags, and safe names', async () => {
    const { out: script } = await shell('agent completion zsh')
    const file = join(directory, '_agent')
    writeFileSync(file, script)
    // The functions of zsh's completion system, which exist only while a person types.
    const stubs = `compdef() { :; }; _files() { :; }; compadd() { shift; print -l -- "\${(@P)1}"; }
_describe() { print -l -- "\${(@P)3}"; }; agent() { echo hello; }`
    const complete = (line: string) =>
      read('zsh', ['-f', '-c', `${stubs}\nsource ${file}; words=(${line} ''); CURRENT=$#words; _agent`])
        .split('\n')
        .map((one) => one.split(':')[0])
        .filter((one) => one !== '')
    expect(complete('agent')).toEqual(expect.arrayContaining(['start', 'status', 'trust', '--version']))
    expect(complete('agent trust')).toEqual(expect.arrayContaining(['list', 'add', 'remove']))
    expect(complete('agent trust list')).toEqual(expect.arrayContaining(['--json', '--socket']))
    expect(complete('agent get')).toEqual(expect.arrayContaining(['--to', 'hello']))
    expect(complete('agent network')).toEqual(expect.arrayContaining(['create', 'leave']))
    expect(complete('agent network show')).toEqual(expect.arrayContaining(['--json', 'hello']))
    expect(complete('agent member list --network')).toEqual(['hello'])
  })
})
