/** Every command against an agent that answers from memory: what it prints, its JSON, its exit status, what it says to do next. */
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import type { AgentApi } from '../../../agent/api/agent-api.ts'
import type { Part, UploadRequest } from '../../../agent/api/contract.ts'
import { CommandLine } from '../../../agent/cli/command-line.ts'
import { commands } from '../../../agent/cli/commands.ts'
import { AgentError } from '../../../agent/error.ts'
import { layoutNar } from '../../../protocols/nar/write.ts'
import {
  artifact,
  blobOf,
  digestOf,
  fakeAgent,
  notFound,
  OTHER_PEER_ID,
  peer,
  serve,
  status,
} from '../api/fake-agent.ts'
import { contentList, gcResult, pin } from '../api/fake-room.ts'
import { plain, run } from './capture.ts'

let directory: string
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'undernet-cli-'))
})
afterEach(() => rmSync(directory, { recursive: true, force: true }))

async function ask(words: string[], replaced: Partial<AgentApi> = {}, columns?: number) {
  await using agent = await serve(replaced)
  return await run(words, { socket: agent.socket, ...(columns !== undefined && { columns }) })
}

async function narOf(path: string): Promise<Buffer> {
  const layout = await layoutNar(path)
  const chunks: Uint8Array[] = []
  for await (const chunk of layout.read(0, layout.sizeBytes, new AbortController().signal)) chunks.push(chunk)
  return Buffer.concat(chunks)
}

/** An agent that has fetched these parts. */
function having(name: string, parts: { bytes: Buffer; kind: Part['kind']; path?: string }[]): Partial<AgentApi> {
  const held = new Map(parts.map(({ bytes }) => [digestOf(bytes), bytes]))
  return {
    fetch: async () => ({
      artifact: { ...artifact, name },
      parts: parts.map(({ bytes, ...rest }) => ({ ...rest, digest: digestOf(bytes), sizeBytes: bytes.byteLength })),
    }),
    blob: async (digest) => {
      const bytes = held.get(digest)
      return bytes && blobOf(bytes)
    },
  }
}

describe('every command', () => {
  it.each([
    [['status'], status],
    [['peers'], { peers: [peer] }],
    [['search', 'hello'], { artifacts: [artifact], truncated: false }],
    [['show', 'hello'], { ...artifact, holders: [{ peerId: OTHER_PEER_ID, name: 'pear', connected: true }] }],
    [['unpublish', 'hello'], artifact],
    [['pin', 'hello'], pin],
    [['unpin', 'hello'], pin],
    [['pins'], { pins: [pin] }],
    [['content', '--sort', 'used'], contentList],
    [['gc'], gcResult],
    [['gc', '--dry-run', '--all'], { ...gcResult, dryRun: true }],
    [['trust', 'list'], { keys: fakeAgent().trustedKeys() }],
    [['trust', 'add', 'a-1:a2V5'], { name: 'a-1', key: 'a-1:a2V5', origin: 'added' }],
    [['trust', 'remove', 'a-1'], { name: 'a-1', key: 'a-1:a2V5', origin: 'added' }],
    [['nix-conf'], fakeAgent().nixConf()],
    [['config', 'show'], fakeAgent().config()],
  ])('%j prints JSON with the names of the contract, and text for people', async (words, value) => {
    const json = await ask([...words, '--json'])
    expect(json).toMatchObject({ status: 0, err: '' })
    expect(JSON.parse(json.out)).toEqual(value)
    const text = await ask(words)
    expect(text.status).toBe(0)
    expect(text.out.length).toBeGreaterThan(5)
    expect(text.out).not.toContain('\x1b')
  })

  it('has help with examples that begin with the command itself', async () => {
    const { out } = await run(['--help'])
    const names = [...out.matchAll(/^ {2}([a-z-]+)(?: [<[].*?)? {2,}\S/gm)].map(([, name]) => name as string)
    const expected =
      'start status peers ping publish unpublish search show get pin unpin pins content gc image network invite join member policy audit trust nix-conf oci-conf config doctor completion version help'
    expect(names).toEqual(expect.arrayContaining(expected.split(' ')))
    const { program } = new CommandLine(commands)
    const children = program.commands.flatMap((one) => one.commands.map((child) => `${one.name()} ${child.name()}`))
    expect(children.length).toBeGreaterThan(15)
    for (const name of [...names.filter((one) => one !== 'help'), ...children]) {
      const help = await run([...name.split(' '), '--help'])
      expect(help.status).toBe(0)
      expect(help.out).toMatch(new RegExp(`Examples:\\n {2}agent ${name}`))
    }
  })

  it('says that no agent is running, and what to do, with exit status 3', async () => {
    for (const words of [['status'], ['peers'], ['search'], ['get', 'x'], ['publish', directory], ['trust', 'list']]) {
      const { status: code, err, out } = await run(words, { socket: join(directory, 'no.sock') })
      expect([words, code]).toEqual([words, 3])
      expect(err).toMatch(/no agent is running/)
      expect(err).toMatch(/agent start/)
      expect(out).toBe('')
    }
  })

  it('turns what the agent says into an exit status, with the next step', async () => {
    const failing = (error: AgentError) => ask(['show', 'x'], { artifact: () => Promise.reject(error) })
    expect(await failing(notFound)).toMatchObject({
      status: 5,
      err: 'agent: nothing is called nope\n       See `agent search`.\n',
    })
    expect(await failing(new AgentError('not-allowed', 'no'))).toMatchObject({ status: 4 })
    expect(await failing(new AgentError('usage', 'no'))).toMatchObject({ status: 2 })
    expect(await failing(new AgentError('limit', 'no'))).toMatchObject({ status: 1 })
    const json = await ask(['show', 'x', '--json'], { artifact: () => Promise.reject(notFound) })
    expect(json.out).toBe('')
    expect(JSON.parse(json.err)).toEqual({
      error: { code: 'not-found', message: notFound.message, next: notFound.next },
    })
  })

  it('answers a mistyped command line with what was meant, and exit status 2', async () => {
    expect(await run(['statsu'])).toMatchObject({ status: 2, err: expect.stringMatching(/Did you mean status/) })
    expect(await run(['get'])).toMatchObject({ status: 2, err: expect.stringMatching(/missing required argument/) })
    expect(await run(['search', '--limt', '3'])).toMatchObject({
      status: 2,
      err: expect.stringMatching(/Did you mean --limit/),
    })
    expect(await run(['completion', 'tcsh'])).toMatchObject({
      status: 2,
      err: expect.stringMatching(/bash, zsh, fish/),
    })
    expect(await run(['start', '--quota', 'much'])).toMatchObject({
      status: 2,
      err: expect.stringMatching(/like 20GiB/),
    })
    expect(await run(['ping', 'x', '-c', 'many'])).toMatchObject({ status: 2 })
  })

  it('removes control characters from an error that quotes a peer', async () => {
    const { err } = await ask(['show', 'x'], {
      artifact: () => Promise.reject(new AgentError('failed', 'bad \x1b[2Jname')),
    })
    expect(err).toBe('agent: bad [2Jname\n')
  })

  it('colours a terminal and only that', async () => {
    expect((await ask(['peers'], {}, 120)).out).toContain('\x1b[1mpear')
  })
})

describe('empty states', () => {
  it('say what to do', async () => {
    expect((await ask(['peers'], { peers: () => [] })).out).toMatch(/agent start --bootstrap/)
    const nothing = { search: () => ({ artifacts: [], truncated: false }) }
    expect((await ask(['search'], nothing)).out).toMatch(/agent publish/)
    expect((await ask(['search', 'zebra'], nothing)).out).toMatch(/Nothing found for zebra/)
    expect((await ask(['trust', 'list'], { trustedKeys: () => [] })).out).toMatch(/trust add/)
  })
})

describe('search', () => {
  it('passes words on and prints what peers wrote as one clean line each', async () => {
    const asked: unknown[] = []
    const search: AgentApi['search'] = (words, limit) => {
      asked.push(words, limit)
      return { artifacts: [{ ...artifact, name: 'x\x1b[31m', description: 'a\nb\u202e' }], truncated: true }
    }
    const { out, err } = await ask(['search', 'two', 'words', '-n', '7'], { search })
    expect(asked).toEqual(['two words', 7])
    expect(out.split('\n')[1]).toMatch(/^x\[31m +file +4\.8 MiB +pear .* a b$/)
    expect(err).toMatch(/--limit 14/)
  })

  it('fits a narrow terminal', async () => {
    const search = () => ({ artifacts: [{ ...artifact, description: 'long '.repeat(100) }], truncated: false })
    const { out } = await ask(['search'], { search }, 60)
    expect(
      plain(out)
        .split('\n')
        .filter((line) => line.length > 60),
    ).toEqual([])
  })
})

describe('show', () => {
  it('tells how to trust a signer that is not trusted', async () => {
    const detail = {
      ...artifact,
      type: 'nix' as const,
      root: '/nix/store/x',
      pathCount: 3,
      holders: [],
      signer: 'pear-1:a2V5',
    }
    const stranger = await ask(['show', 'hello'], { artifact: () => ({ ...detail, signerTrusted: false }) })
    expect(stranger.out).toMatch(/not trusted here/)
    expect(stranger.out).toMatch(/agent trust add pear-1:a2V5/)
    const known = await ask(['show', 'hello'], { artifact: () => ({ ...detail, signerTrusted: true }) })
    expect(known.out).not.toMatch(/trust add/)
  })

  it('takes any reference', async () => {
    const asked: string[] = []
    const refs = ['pear/hello', 'a b', 'ä', '/nix/store/x', '%2f', '..']
    const artifact = (ref: string) => {
      asked.push(ref)
      throw notFound
    }
    for (const ref of refs) await ask(['show', ref], { artifact })
    expect(asked).toEqual(refs)
  })
})

describe('publish', () => {
  const sent: { request: UploadRequest; bytes: Buffer }[] = []
  const api: Partial<AgentApi> = {
    publishUpload: async (request, bytes) => {
      const chunks: Uint8Array[] = []
      for await (const chunk of bytes) chunks.push(chunk)
      sent.push({ request, bytes: Buffer.concat(chunks) })
      return { artifact: { ...artifact, ...request, description: '', own: true }, announcedTo: 2 }
    },
  }
  beforeEach(() => sent.splice(0))

  it('sends a file, named by its path as far as a name may have that', async () => {
    writeFileSync(join(directory, 'my notes.txt'), 'hello')
    const { status: code, out } = await ask(['publish', join(directory, 'my notes.txt'), '-d', 'the notes'], api)
    expect(code).toBe(0)
    expect(sent).toEqual([
      { request: { type: 'file', name: 'my-notes.txt', description: 'the notes' }, bytes: Buffer.from('hello') },
    ])
    expect(out).toMatch(/2 peers told; there: agent get my-notes\.txt/)
  })

  it('sends a folder as its NAR', async () => {
    mkdirSync(join(directory, 'site/sub'), { recursive: true })
    writeFileSync(join(directory, 'site/sub/page'), 'x'.repeat(300_000))
    expect((await ask(['publish', join(directory, 'site'), '--name', 'pages'], api)).status).toBe(0)
    expect(sent[0]?.request).toEqual({ type: 'folder', name: 'pages' })
    expect(digestOf(sent[0]?.bytes ?? '')).toBe(digestOf(await narOf(join(directory, 'site'))))
  })

  it('sends an empty file', async () => {
    writeFileSync(join(directory, 'empty'), '')
    expect((await ask(['publish', join(directory, 'empty')], api)).status).toBe(0)
    expect(sent[0]?.bytes.byteLength).toBe(0)
  })

  it('names a store path instead of sending it, also through a link', async () => {
    const store = join(directory, 'store')
    const path = join(store, '00bgd045z0d4icpbc2yyz4gx48ak44la-hello-1.0')
    mkdirSync(join(path, 'bin'), { recursive: true })
    symlinkSync(path, join(directory, 'result'))
    process.env.NIX_STORE_DIR = store
    try {
      const asked: unknown[] = []
      const publishStorePath: AgentApi['publishStorePath'] = async (request) => {
        asked.push(request)
        return { artifact: { ...artifact, type: 'nix', pathCount: 3, root: path }, announcedTo: 0 }
      }
      expect((await ask(['publish', join(directory, 'result'), '--name', 'h'], { publishStorePath })).out).toMatch(
        /nix, 3 paths/,
      )
      expect(asked).toEqual([{ storePath: path, name: 'h' }])
      await ask(['publish', join(directory, 'result/bin')], api)
      expect(sent[0]?.request).toEqual({ type: 'folder', name: 'bin' })
    } finally {
      delete process.env.NIX_STORE_DIR
    }
  })

  it('explains a path that is not there, and one that cannot be shared', async () => {
    expect(await ask(['publish', join(directory, 'gone')], api)).toMatchObject({
      status: 5,
      err: expect.stringMatching(/gone: there is no such file/),
    })
    expect(await ask(['publish', '/dev/null'], api)).toMatchObject({
      status: 2,
      err: expect.stringMatching(/neither a file nor a folder/),
    })
  })
})

describe('get', () => {
  const to = () => join(directory, 'to')

  it('writes a file, once: then it is there already', async () => {
    const bytes = Buffer.alloc(1_000_000, 'undernet')
    const api = having('data.bin', [{ bytes, kind: 'file' }])
    const first = await ask(['get', 'data.bin', '--to', to()], api)
    expect(first).toMatchObject({ status: 0, err: '' })
    expect(readFileSync(join(to(), 'data.bin')).equals(bytes)).toBe(true)
    const again = await ask(['get', 'data.bin', '--to', to(), '--json'], {
      ...api,
      blob: () => Promise.reject(new Error('asked again')),
    })
    expect(JSON.parse(again.out).files).toEqual([{ path: join(to(), 'data.bin'), isNew: false }])
    expect(readdirSync(to())).toEqual(['data.bin'])
  })

  it('unpacks a folder', async () => {
    mkdirSync(join(directory, 'from/sub'), { recursive: true })
    writeFileSync(join(directory, 'from/sub/page'), 'hello')
    symlinkSync('sub/page', join(directory, 'from/link'))
    const api = having('site', [{ bytes: await narOf(join(directory, 'from')), kind: 'nar' }])
    expect((await ask(['get', 'site', '--to', to()], api)).status).toBe(0)
    expect(readFileSync(join(to(), 'site/link'), 'utf8')).toBe('hello')
    expect((await ask(['get', 'site', '--to', to()], api)).out).toMatch(/was there already/)
  })

  it('puts the paths of a closure below nix/store', async () => {
    mkdirSync(join(directory, 'from'))
    const bytes = await narOf(join(directory, 'from'))
    const path = '/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-hello-1.0'
    expect((await ask(['get', 'x', '--to', to()], having('x', [{ bytes, kind: 'nar', path }]))).status).toBe(0)
    expect(readdirSync(join(to(), 'nix/store'))).toEqual(['00bgd045z0d4icpbc2yyz4gx48ak44la-hello-1.0'])
  })

  it('overwrites nothing', async () => {
    mkdirSync(to())
    writeFileSync(join(to(), 'x'), 'mine')
    const { status: code, err } = await ask(
      ['get', 'x', '--to', to()],
      having('x', [{ bytes: Buffer.from('yours'), kind: 'file' }]),
    )
    expect([code, readFileSync(join(to(), 'x'), 'utf8')]).toEqual([1, 'mine'])
    expect(err).toMatch(/Nothing is overwritten/)
  })

  it('does not write through a link that stands in the place', async () => {
    mkdirSync(to())
    writeFileSync(join(directory, 'target'), 'mine')
    symlinkSync(join(directory, 'target'), join(to(), 'x'))
    expect(
      (await ask(['get', 'x', '--to', to()], having('x', [{ bytes: Buffer.from('yours'), kind: 'file' }]))).status,
    ).toBe(1)
    expect(readFileSync(join(directory, 'target'), 'utf8')).toBe('mine')
  })

  it('keeps nothing of bytes that are not those of the digest, nor of a NAR that is none', async () => {
    const digest = digestOf('right')
    for (const kind of ['file', 'nar'] as const) {
      const api: Partial<AgentApi> = {
        fetch: async () => ({ artifact, parts: [{ digest, sizeBytes: 5, kind }] }),
        blob: async () => blobOf(Buffer.from('wrong')),
      }
      expect((await ask(['get', 'x', '--to', to()], api)).status).toBe(1)
      expect(readdirSync(to())).toEqual([])
    }
  })

  it.each(['../evil', '..', '.', '/etc/passwd', 'a/b', '.bashrc', 'a\0b', ''])(
    'writes nothing for an artifact named %j',
    async (name) => {
      const { status: code } = await ask(
        ['get', 'x', '--to', to()],
        having(name, [{ bytes: Buffer.from('x'), kind: 'file' }]),
      )
      expect([code, readdirSync(directory)]).toEqual([1, []])
    },
  )

  it.each(['/nix/store/../../evil', '/nix/store/x', '/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-a/../../b'])(
    'writes nothing for a store path %j',
    async (path) => {
      const api = having('x', [{ bytes: Buffer.from('x'), kind: 'nar', path }])
      expect([(await ask(['get', 'x', '--to', to()], api)).status, readdirSync(directory)]).toEqual([1, []])
    },
  )

  it('shows progress on a terminal, and not in a pipe', async () => {
    const api = having('x', [{ bytes: Buffer.from('hello'), kind: 'file' }])
    const fetch = api.fetch as AgentApi['fetch']
    const slow: AgentApi['fetch'] = (ref, onProgress, signal) => {
      onProgress(1, 2)
      return fetch(ref, onProgress, signal)
    }
    expect((await ask(['get', 'x', '--to', to()], { ...api, fetch: slow }, 100)).err).toMatch(/Fetching x {2}█/)
    expect((await ask(['get', 'x', '--to', to()], { ...api, fetch: slow })).err).toBe('')
  })
})

describe('config show', () => {
  it('shows what an agent would use when none is running', async () => {
    process.env.UNDERNET_NAME = 'kiwi'
    try {
      const { status: code, out, err } = await run(['config', 'show'], { socket: join(directory, 'no.sock') })
      expect(code).toBe(0)
      expect(out).toMatch(/^name +kiwi +UNDERNET_NAME$/m)
      expect(err).toMatch(/No agent is running/)
    } finally {
      delete process.env.UNDERNET_NAME
    }
  })
})

describe('doctor', () => {
  it('works without an agent, and with one', async () => {
    process.env.UNDERNET_STATE = join(directory, 'state')
    process.env.UNDERNET_LISTEN = '/ip4/127.0.0.1/tcp/0'
    process.env.UNDERNET_HTTP = 'off'
    try {
      const without = await run(['doctor', '--json'], { socket: join(directory, 'no.sock') })
      const { checks } = JSON.parse(without.out)
      expect(checks.map(({ name }: { name: string }) => name)).toEqual(
        expect.arrayContaining(['configuration', 'agent', 'state', 'port', 'nix']),
      )
      expect(without.status).toBe(0)
      const running = await ask(['doctor', '--json'])
      expect(JSON.parse(running.out).checks).toContainEqual({
        id: 'clock',
        name: 'clock',
        state: 'ok',
        message: 'as the peers have it',
      })
    } finally {
      for (const key of ['STATE', 'LISTEN', 'HTTP']) delete process.env[`UNDERNET_${key}`]
    }
  })

  it('fails on a broken configuration and a taken port', async () => {
    const { createServer } = await import('node:net')
    const other = createServer()
    await new Promise<void>((resolve) => other.listen(0, '127.0.0.1', resolve))
    const { port } = other.address() as { port: number }
    process.env.UNDERNET_STATE = join(directory, 'state')
    process.env.UNDERNET_LISTEN = `/ip4/127.0.0.1/tcp/${port}`
    process.env.UNDERNET_HTTP = 'off'
    try {
      const taken = await run(['doctor'], { socket: join(directory, 'no.sock') })
      expect(taken.status).toBe(1)
      expect(taken.out).toMatch(/another program listens there/)
      process.env.UNDERNET_QUOTA = 'much'
      expect((await run(['doctor'], { socket: join(directory, 'no.sock') })).out).toMatch(
        /✗ configuration .*like 20GiB/,
      )
    } finally {
      for (const key of ['STATE', 'LISTEN', 'HTTP', 'QUOTA']) delete process.env[`UNDERNET_${key}`]
      other.close()
    }
  })
})
