/** Files put on a machine and taken away again: the bytes are the same as before, whatever was there, whoever changed it since, wherever it was cut off. */
import { chmodSync, existsSync, readlinkSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { basename, dirname, join } from 'node:path'
import fc from 'fast-check'
import { afterAll, describe, expect, it } from 'vitest'
import { applyChange, planChanges, type Wanted, withoutTakenOut } from '../../../agent/install/change.ts'
import { Manifest, PARTS, type Part, parseManifest } from '../../../agent/install/manifest.ts'
import { programOf } from '../../../agent/install/program.ts'
import { Root } from '../../../agent/install/root.ts'
import {
  applyUndo,
  planUndo,
  removeDirectories,
  removeLastDirectories,
  type Undoing,
} from '../../../agent/install/undo.ts'
import { Tree } from './tree.ts'

const part = 'agent'
const CONF: Wanted = { kind: 'block', part: 'nix', path: '/etc/nix/nix.conf', lines: ['extra = 1'] }
const PROGRAM_FILE: Wanted = { kind: 'file', part, path: '/usr/local/bin/agent', text: '#!/bin/sh\n', mode: 0o755 }
const YOURS: Wanted = { kind: 'file', part, path: '/etc/undernet/agent.toml', text: '#a\n', mode: 0o644, isYours: true }

const SOURCE = new Tree()
afterAll(() => SOURCE[Symbol.dispose]())
SOURCE.put('main.js', 'one')
const PROGRAM = programOf([{ path: 'dist/main.js', source: join(SOURCE.directory, 'main.js'), isExecutable: true }])
const ALL: readonly Wanted[] = [
  { kind: 'tree', part, path: `/usr/local/lib/undernet/${PROGRAM.id}`, program: PROGRAM },
  { kind: 'link', part, path: '/usr/local/lib/undernet/current', target: PROGRAM.id },
  PROGRAM_FILE,
  YOURS,
  CONF,
]

const IN_THE_WAY: Wanted = { kind: 'file', part, path: '/usr/local/share/x', text: 'ours', mode: 0o644 }

function install(root: Root, wanted: readonly Wanted[], force = false): string[] {
  const manifest = Manifest.load(root)
  const steps = planChanges(wanted, root, manifest, force)
  for (const step of steps) applyChange(step, root, manifest)
  return steps.map(({ action }) => action)
}

function uninstall(root: Root, parts: readonly Part[] = PARTS, isPurge = false): Undoing[] {
  const manifest = Manifest.load(root)
  const undoing = planUndo(root, manifest, parts, isPurge)
  for (const one of undoing) applyUndo(one, root, manifest)
  if (isPurge) for (const { entry } of undoing) manifest.forget(entry.path)
  removeDirectories(root, manifest, parts)
  if (manifest.entries.some(({ kind }) => kind !== 'directory')) return undoing
  const left = manifest.entries.map(({ path }) => path).toReversed()
  manifest.remove()
  removeLastDirectories(root, left)
  return undoing
}

const MOMENTS = ['before', 'amid', 'after'] as const
type Moment = (typeof MOMENTS)[number]

/** Ends like a process that is killed: at the nth write, before, amid or after it. */
class CutOff extends Root {
  left: number
  readonly #moment: Moment

  constructor(directory: string, at: number, moment: Moment) {
    super(directory)
    this.left = at
    this.#moment = moment
  }

  override write(...given: Parameters<Root['write']>): void {
    const [path] = given
    if (this.left === 0 && this.#moment === 'amid')
      writeFileSync(this.at(join(dirname(path), `.${basename(path)}.undernet-new`)), 'half of')
    this.#once(() => super.write(...given))
  }

  override link(...given: Parameters<Root['link']>): void {
    this.#once(() => super.link(...given))
  }

  override makeReadable(path: string): void {
    this.#once(() => super.makeReadable(path))
  }

  #once(work: () => void): void {
    const isNow = this.left-- === 0
    if (!isNow || this.#moment === 'after') work()
    if (isNow) throw new Error('cut off')
  }
}

describe('an installation', () => {
  it('puts everything into its place, a second time nothing, and is taken away to the byte', () => {
    using tree = new Tree()
    tree.put('etc/nix/nix.conf', 'max-jobs = 2')
    const before = tree.snapshot()
    const root = new Root(tree.directory)
    expect(install(root, ALL)).toEqual(['create', 'create', 'create', 'create', 'edit'])
    const after = tree.snapshot()
    expect(install(root, ALL)).toEqual(['same', 'same', 'same', 'same', 'same'])
    expect(tree.snapshot()).toEqual(after)
    expect(after['usr/local/bin/agent']).toMatch(/^file 755 /)
    expect(tree.read('etc/nix/nix.conf')).toContain('\nextra = 1\n')
    uninstall(root)
    expect(tree.snapshot()).toEqual(before)
  })

  it('of lines into a file is undone to the same bytes, whatever is in it, and its mode stays', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 200 }), fc.constantFrom(0o600, 0o644, 0o664), (bytes, mode) => {
        using tree = new Tree()
        tree.put('etc/nix/nix.conf', bytes)
        chmodSync(join(tree.directory, 'etc/nix/nix.conf'), mode)
        const before = tree.snapshot()
        const root = new Root(tree.directory)
        install(root, [CONF])
        install(root, [{ ...CONF, lines: ['other = 2', 'más = 3'] } as Wanted])
        expect(tree.snapshot()['etc/nix/nix.conf']).not.toBe(before['etc/nix/nix.conf'])
        uninstall(root)
        expect(tree.snapshot()).toEqual(before)
      }),
      { numRuns: 30 },
    )
  })

  it('that was cut off anywhere can be ended, or undone', () => {
    for (const moment of MOMENTS)
      for (let at = 0; ; at++) {
        using tree = new Tree()
        tree.put('etc/nix/nix.conf', 'max-jobs = 2\n')
        tree.put('usr/local/share/x', 'mine')
        const before = tree.snapshot()
        const cut = new CutOff(tree.directory, at, moment)
        const root = new Root(tree.directory)
        let isCut = true
        try {
          install(cut, [...ALL, IN_THE_WAY], true)
          isCut = false
        } catch (error) {
          expect(String(error)).toContain('cut off')
        }
        if (at % 2 === 0) {
          install(root, [...ALL, IN_THE_WAY], true)
          expect(install(root, [...ALL, IN_THE_WAY]).every((action) => action === 'same')).toBe(true)
        }
        uninstall(root)
        expect(tree.snapshot(), `cut off ${moment} ${at}`).toEqual(before)
        if (!isCut) break
      }
  })

  it('changes nothing when something is in its way, and names all of it', () => {
    using tree = new Tree()
    tree.put('usr/local/bin/agent', 'mine')
    tree.put('usr/local/lib/undernet/current', 'mine')
    const before = tree.snapshot()
    const root = new Root(tree.directory)
    expect(() => install(root, ALL)).toThrow(
      expect.objectContaining({
        code: 'taken',
        message: expect.stringMatching(/undernet\/current\n.*usr\/local\/bin\/agent$/),
      }),
    )
    expect(tree.snapshot()).toEqual(before)
    rmSync(join(tree.directory, 'usr/local/bin/agent'))
    symlinkSync('../lib/undernet/current', join(tree.directory, 'usr/local/bin/agent'))
    expect(() => install(root, [PROGRAM_FILE], true)).toThrow('a link')
    expect(tree.read('usr/local/lib/undernet/current')).toBe('mine')
  })

  it('replaces a file when it was told to, and puts it back', () => {
    using tree = new Tree()
    tree.put('usr/local/bin/agent', 'mine')
    chmodSync(join(tree.directory, 'usr/local/bin/agent'), 0o700)
    const before = tree.snapshot()
    const root = new Root(tree.directory)
    expect(install(root, [PROGRAM_FILE], true)).toEqual(['replace'])
    expect(tree.snapshot()['usr/local/bin/agent']).toMatch(/^file 755/)
    uninstall(root)
    expect(tree.snapshot()).toEqual(before)
  })

  it('takes over what is the same already, without making it its own', () => {
    using tree = new Tree()
    tree.put('usr/local/bin/agent', '#!/bin/sh\n')
    tree.put('etc/nix/nix.conf', ' extra = 1\n')
    const before = tree.snapshot()
    const root = new Root(tree.directory)
    expect(install(root, [PROGRAM_FILE, CONF])).toEqual(['same', 'keep'])
    expect(tree.snapshot()).toEqual(before)
  })

  it('brings a newer version, and leaves what somebody changed', () => {
    using tree = new Tree()
    const root = new Root(tree.directory)
    install(root, [PROGRAM_FILE, YOURS, CONF])
    tree.put('etc/undernet/agent.toml', 'name = "a"\n')
    const newer = [PROGRAM_FILE, YOURS].map((one) => ({ ...one, text: 'newer\n' }) as Wanted)
    expect(install(root, newer)).toEqual(['replace', 'keep'])
    tree.put('usr/local/bin/agent', 'mine now')
    expect(install(root, newer)).toEqual(['keep', 'keep'])
    expect(tree.read('usr/local/bin/agent')).toBe('mine now')
  })
})

describe('a later installation', () => {
  it('puts nothing back that somebody took out, unless it is asked for', () => {
    using tree = new Tree()
    tree.put('etc/nix/nix.conf', 'a = 1\n')
    const root = new Root(tree.directory)
    const other: Wanted = { ...IN_THE_WAY, part: 'containers' }
    const fresh: Wanted = { ...other, path: '/usr/local/share/fresh' }
    install(root, [CONF, other])
    const steps = (wanted: readonly Wanted[]) => {
      const manifest = Manifest.load(root)
      return withoutTakenOut(planChanges(wanted, root, manifest), manifest).map(({ action }) => action)
    }
    const newer = { ...CONF, lines: ['extra = 2'] } as Wanted
    expect(steps([newer, other, fresh])).toEqual(['edit', 'same', 'create'])
    tree.put('etc/nix/nix.conf', 'a = 1\nb = 2\n')
    rmSync(join(tree.directory, 'usr/local/share/x'))
    expect(steps([newer, other, fresh])).toEqual(['keep', 'keep', 'create'])
    // One that was cut off is another matter.
    Manifest.load(root).begin()
    expect(steps([newer, other, fresh])).toEqual(['edit', 'create', 'create'])
  })
})

describe('taking away', () => {
  it('that was cut off anywhere can be done again', () => {
    for (const moment of MOMENTS)
      for (let at = 0; at < 3; at++) {
        using tree = new Tree()
        tree.put('etc/nix/nix.conf', 'max-jobs = 2\n')
        tree.put('usr/local/share/x', 'mine')
        const before = tree.snapshot()
        const root = new Root(tree.directory)
        install(root, [...ALL, IN_THE_WAY], true)
        try {
          uninstall(new CutOff(tree.directory, at, moment))
        } catch (error) {
          expect(String(error)).toContain('cut off')
        }
        uninstall(root)
        expect(tree.snapshot(), `cut off ${moment} ${at}`).toEqual(before)
      }
  })

  it('leaves what was changed since, and takes only its own lines out of it', () => {
    using tree = new Tree()
    tree.put('etc/nix/nix.conf', 'a = 1\n')
    const root = new Root(tree.directory)
    install(root, [PROGRAM_FILE, YOURS, CONF])
    tree.put('etc/undernet/agent.toml', 'name = "a"\n')
    tree.put('etc/nix/nix.conf', `# mine\n${tree.read('etc/nix/nix.conf')}b = 2\n`)
    const undone = uninstall(root)
    expect(undone.map(({ action, entry }) => [action, entry.path])).toEqual([
      ['edit', '/etc/nix/nix.conf'],
      ['keep', '/etc/undernet/agent.toml'],
      ['remove', '/usr/local/bin/agent'],
    ])
    expect(tree.read('etc/nix/nix.conf')).toBe('# mine\na = 1\nb = 2\n')
    expect(tree.read('etc/undernet/agent.toml')).toBe('name = "a"\n')
    // Purged later, it goes after all.
    expect(uninstall(root, PARTS, true).map(({ action }) => action)).toEqual(['remove'])
    expect(Object.keys(tree.snapshot())).toEqual(['etc', 'etc/nix', 'etc/nix/nix.conf'])
  })

  it('of one part leaves the others', () => {
    using tree = new Tree()
    const root = new Root(tree.directory)
    install(root, [PROGRAM_FILE, CONF])
    uninstall(root, ['nix'])
    expect(existsSync(join(tree.directory, 'etc/nix'))).toBe(false)
    expect(existsSync(join(tree.directory, 'usr/local/bin/agent'))).toBe(true)
    uninstall(root)
    expect(tree.snapshot()).toEqual({})
  })

  it('puts back what was there before somebody changed the file between two installations', () => {
    using tree = new Tree()
    tree.put('etc/nix/nix.conf', 'a = 1\n')
    const root = new Root(tree.directory)
    install(root, [CONF])
    tree.put('etc/nix/nix.conf', `${tree.read('etc/nix/nix.conf')}b = 2\n`)
    install(root, [{ ...CONF, lines: ['extra = 2'] } as Wanted])
    uninstall(root)
    expect(tree.read('etc/nix/nix.conf')).toBe('a = 1\nb = 2\n')
  })

  it('does not remove a link that leads elsewhere now', () => {
    using tree = new Tree()
    const root = new Root(tree.directory)
    const link: Wanted = { kind: 'link', part, path: '/etc/x/current', target: 'one' }
    install(root, [link])
    rmSync(join(tree.directory, 'etc/x/current'))
    symlinkSync('two', join(tree.directory, 'etc/x/current'))
    expect(uninstall(root)).toMatchObject([{ action: 'keep' }])
    expect(readlinkSync(join(tree.directory, 'etc/x/current'))).toBe('two')
  })
})

describe('a directory that will be a machine', () => {
  it('is not left by a link', () => {
    using tree = new Tree()
    using outside = new Tree()
    tree.put('etc/x', '')
    symlinkSync(outside.directory, join(tree.directory, 'usr'))
    symlinkSync(join(outside.directory, 'conf'), join(tree.directory, 'etc/conf'))
    const root = new Root(tree.directory)
    expect(() => install(root, [PROGRAM_FILE])).toThrow(expect.objectContaining({ code: 'not-allowed' }))
    expect(() => install(root, [{ ...CONF, path: '/etc/conf' } as Wanted])).toThrow(
      expect.objectContaining({ code: 'taken' }),
    )
    expect(outside.snapshot()).toEqual({})
  })
})

describe('the manifest', () => {
  it('is believed only as it was written', () => {
    const hash = 'a'.repeat(64)
    const entry = { kind: 'file', path: '/etc/a', part, how: 'whole', before: null, ours: [hash] }
    const of = (...entries: unknown[]) => ({ format: 1, isUnfinished: false, entries })
    expect(parseManifest(of(entry)).entries).toEqual([entry])
    for (const bad of [
      { ...entry, path: '/etc/../a' },
      { ...entry, path: 'etc/a' },
      { ...entry, path: '/' },
      { ...entry, path: '/etc//a' },
      { ...entry, part: 'all' },
      { ...entry, how: 'some' },
      { ...entry, ours: ['../x'] },
      { ...entry, before: { hash: '../../etc/shadow', mode: 0o644, uid: 0, gid: 0 } },
      { ...entry, before: { hash, mode: 0o100000, uid: 0, gid: 0 } },
      { ...entry, kind: 'device' },
      { kind: 'link', path: '/a', part },
      { kind: 'user', path: 'root; rm', part },
      null,
    ])
      expect(() => parseManifest(of(bad)), JSON.stringify(bad)).toThrow()
    expect(() => parseManifest({ format: 2, entries: [] })).toThrow('format')
    fc.assert(
      fc.property(fc.anything(), (raw) => {
        try {
          parseManifest(raw)
        } catch (error) {
          expect(error).toBeInstanceOf(Error)
        }
      }),
    )
  })

  it('that is damaged stops everything, with what to do', () => {
    using tree = new Tree()
    tree.put('var/lib/undernet-install/manifest.json', '{')
    expect(() => Manifest.load(new Root(tree.directory))).toThrow(
      expect.objectContaining({ code: 'corrupt', next: expect.stringContaining('backup') }),
    )
  })
})
