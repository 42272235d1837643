"""Make lessons for the universal policy: relaxations of crystals with CHGNet and of molecules with GFN2-xTB.

    python tools/teach.py crystals FILE --calls 12000
    python tools/teach.py molecules FILE --calls 10000

Each structure is strained and displaced, relaxed without a policy, and displaced again around its end. Every
evaluation becomes a frame. FILE (extxyz) grows by whole structures; a second call goes on where the first one stopped.
What the benchmark tests is left out: the element sets of its crystals, two of its prototypes, the formulas of its
molecules.
"""
import argparse
import itertools
import os
import sys
import time
import warnings
from functools import lru_cache

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import atomic_numbers, covalent_radii
from ase.build import add_adsorbate, fcc111, molecule
from ase.filters import FrechetCellFilter
from ase.neighborlist import neighbor_list
from ase.io import iread, write

from atomrl_nb.neighbours import closest_pair
from atomrl_nb.optimizer import RLOptimizer
from atomrl_nb.starts import CRYSTALS, MORE_CRYSTALS, g2_names, published, special_cells, strained
from atomrl_nb.structures import calculator

HIGHEST = 30.0  # eV/Å: a start with a larger force teaches nothing of use
ALKALI, EARTH, TRANSITION = "Li Na K Rb Cs", "Mg Ca Sr Ba", "Ti V Cr Mn Fe Co Ni"
HALOGEN, CHALCOGEN, PNICTOGEN = "F Cl Br I", "O S Se Te", "N P As Sb"
THREE, TIN = "Al Ga In", "Si Ge Sn"
LATE, EARLY = "Fe Co Ni Ru Rh Pd Ir Pt", "Sc Y Ti Zr Hf V Nb Ta"
KINDS = [  # prototype of AFLOW's library, and the elements that go where its own are
    ("AB_cF8_225_a_b", dict(Na=ALKALI + " Ag", Cl=HALOGEN)), ("AB_cF8_225_a_b", dict(Na=EARTH + " Mn Fe Co Ni Cd Pb", Cl=CHALCOGEN)),
    ("AB_cF8_225_a_b", dict(Na=EARLY + " La", Cl="N P C")), ("AB_cF8_216_c_a", dict(Zn=THREE + " B", S=PNICTOGEN)),
    ("AB_cF8_216_c_a", dict(Zn="Be Zn Cd Hg Mn", S="S Se Te O")), ("AB_cF8_216_c_a", dict(Zn="Cu Ag", S="Cl Br I")),
    ("AB_hP4_186_b_b", dict(Zn="Be Zn Cd", S=CHALCOGEN)), ("AB_hP4_186_b_b", dict(Zn=THREE + " B", S="N P")),
    ("AB_cP2_221_b_a", dict(Cs="Cs Rb Tl", Cl="Cl Br I")), ("AB_cP2_221_b_a", dict(Cs=LATE + " Cu", Cl="Al Ga Ti Zr Zn Be Sc Y")),
    ("AB2_cF12_225_a_c", dict(Ca="Ca Sr Ba Cd Pb", F="F Cl")), ("AB2_cF12_225_a_c", dict(Ca="Ce Hf Pr", F="O")),
    ("AB2_cF12_225_a_c", dict(Ca="O S Se Te", F=ALKALI)), ("AB2_cF12_225_a_c", dict(Ca=TIN + " Pb", F="Mg")),
    ("A2B3_hR10_167_c_e", dict(Al="Al Ga In V Cr Fe Ti Rh", O="O")), ("AB3C_hR10_148_c_f_c", dict(Ti="Ti Ge Sn Mn V", Fe="Mg Mn Fe Co Ni Zn", O="O")),
    ("ABC3_hR10_161_a_a_b", dict(Li="Li Na", Nb="Nb Ta V", O="O")), ("A2B_tI12_141_e_a", dict(Ti="Zr Sn Ge Hf Si", O="O")),
    ("AB2_hP3_164_a_d", dict(Cd="Mg Ca Mn Fe Co Zn Ni", I="Cl Br I")), ("AB2_hP3_164_a_d", dict(Cd="Ti Zr Hf V Sn Pt Nb", I="S Se Te")),
    ("AB2_hP6_194_c_f", dict(Mo="Mo W Nb Ta", S="Se Te S")), ("AB2_cP12_205_a_c", dict(Fe="Fe Co Ni Mn Ru Os", S="S Se Te")),
    ("AB2_cP12_205_a_c", dict(Fe="Pt Pd", S="P As Sb")), ("AB2_oP6_58_a_g", dict(Fe="Fe Co Ni", S="S Se As Sb")),
    ("A2B_cP6_224_b_a", dict(Cu="Ag", O="O S")), ("A3B_cP4_221_d_a", dict(Re="W Re Mo", O="O")), ("A3B_cP4_221_d_a", dict(Re="Al Sc Ga In Fe", O="F")),
    ("ABC_cF12_216_b_c_a", dict(Ag="Ni Co Pd Pt Rh Ir", Mg="Ti Zr Hf Nb V Sc Y", As="Sn Sb Bi Ge")), ("AB2C_cF16_225_a_c_b", dict(Mn="Mn Ti V Zr Hf", Cu=LATE + " Cu", Al="Al Ga Si Ge Sn In")),
    ("AB3_cP4_221_a_c", dict(Cu="Ni Pt Pd Co Fe", Au="Al Ga Sn Ti Mn In")), ("AB3_cP4_221_a_c", dict(Cu="Al", Au="Sc Zr Y")),
    ("A3B_tI8_139_bd_a", dict(Al="Al Ga Pd", Ti="Ti V Nb Zr Hf")), ("AB_tP2_123_a_d", dict(Cu="Fe Co Ni Mn Ti", Au="Pt Pd Al Ga")),
    ("A2B_cF24_227_d_a", dict(Cu="Al Co Fe Ni Cu Rh Cr", Mg="Ca Y Zr Mg Sc La Ti")), ("AB2_hP12_194_f_ah", dict(Mg="Mg Zr Ti Hf Sc", Zn="Zn Ni Fe Co Mn Cr")),
    ("A3B_cP8_223_c_a", dict(Cr="Nb V Ti Cr", Si="Si Ge Sn Al Ga Pt")), ("AB_hP4_194_c_a", dict(Ni=TRANSITION, As="S Se Te As Sb P")),
    ("AB_tP4_129_a_c", dict(Pb="Pb Sn", O="O")), ("AB_tP4_129_a_c", dict(Pb="Se S Te", O="Fe")), ("ABC2_tI16_122_a_b_d", dict(Cu="Cu Ag", Fe="Al Ga In", S="S Se Te")),
    ("ABC2_tI16_122_a_b_d", dict(Cu="Zn Cd Mg", Fe="Si Ge Sn", S="P As N")), ("A2BC4D_tI16_121_d_a_i_b", dict(Cu="Cu Ag", Fe="Zn Cd Fe Mn Co", Sn="Sn Ge Si", S="S Se")),
    ("A2BC4_cF56_227_d_a_e", dict(Mg="Mg Zn Mn Co Fe Li", Al="Al Ga Cr V Mn Co In", O="O S")), ("ABC3_hR10_167_a_b_e", dict(Ca="Ca Mg Mn Fe Zn Cd", C="C", O="O")),
    ("A4BC_tI24_141_h_b_a", dict(Zr="Zr Hf", Si="Si Ge", O="O")), ("A4BC_tI24_141_h_b_a", dict(Zr="Y Sc La", Si="P V As", O="O")),
    ("ABC2_hR4_166_a_b_c", dict(Na="Li Na K Cu Ag", Cr="Co Ni Al Cr V Fe Ga In", S="O S Se")), ("A2B3_hR5_166_c_ac", dict(Bi="Bi Sb", Te="Te Se S")),
    ("AB3_hR8_148_c_f", dict(Bi="Bi Cr Y Sc", I="I Br Cl")), ("AB3_mC16_12_g_ij", dict(Al="Al Y Cr Rh In", Cl="Cl Br")),
    ("A3B_hP4_191_bc_a", dict(Li="Li", N="N")), ("AB3_hP8_194_c_bf", dict(Na="Li Na K Rb", As="P As Sb Bi")), ("AB2C4_tI14_139_a_e_ce", dict(Cu="Mg Zn Ni Co", La="K Rb", O="F")),
    ("AB2C4_tI14_139_a_e_ce", dict(Cu="Zr Sn Hf", La="Ca Ba", O="O")), ("ABC_tP6_129_c_a_c", dict(Pb="Ba Sr Ca Pb", F="F", Cl="Cl Br I")), ("A2B_oP12_62_2c_c", dict(Pb="Ba Pb Sr Ca", Cl="Cl Br H")),
    ("A2B_oP12_62_2c_c", dict(Co="Co Ni Fe Mn", Si="Si P Ge")), ("AB_oP8_62_c_c", dict(Ge="Ge Sn", S="S Se")), ("AB_oP8_62_c_c", dict(Mn="Mn Co Fe Cr V", P="P As B")), ("AB_cP8_198_a_a", dict(Fe="Fe Co Mn Cr Ni Ru Rh", Si="Si Ge Sn")),
    ("A2B_tP6_129_ac_c", dict(Cu="Cu Mn Fe", Sb="Sb As")), ("AB2_tI6_139_a_e", dict(Si="Mo W Re", Mo="Si Ge")), ("A2B_tI12_140_h_a", dict(Al="Al", Cu="Cu Fe Co")), ("A2B_oF24_70_e_a", dict(Ti="Ti Zr", Si="Si Ge")),
    ("AB2_hP3_191_a_d", dict(Al="Mg Al Ti Zr Nb Ta Sc", B="B")), ("A6B_cP7_221_f_a", dict(Ca="Ca Sr Ba La Y", B="B")), ("AB_hP2_187_d_a", dict(W="W Mo Nb Ta", C="C N")), ("A2B_hP9_152_c_a", dict(Si="Ge", O="O")), ("AB4C_tI12_82_c_g_a", dict(B="B Al Ga", P="P As", O="O")),
    ("AB_mC8_15_c_e", dict(Cu="Cu Ag", O="O")), ("A2BC4_tI14_82_bc_a_g", dict(Cd="Cd Zn Hg", Al="Al Ga In", S="S Se")), ("A3B4C_cP8_215_d_e_a", dict(V="V Nb Ta", Cu="Cu", S="S Se Te")), ("A2B_oI12_72_j_a", dict(Si="Si Ge", S="S Se")), ("AB_cF16_227_a_b", dict(Na="Li Na", Tl="Al Ga In Tl Zn")),
    ("A_cF4_225_a", dict(Cu="Al Cu Ag Au Ni Pd Pt Rh Ir Pb Ca Sr")), ("A_cI2_229_a", dict(W="Li Na K V Nb Ta Cr Mo W Fe Ba")), ("A_hP2_194_c", dict(Mg="Mg Ti Zr Hf Zn Cd Co Ru Re Sc Y Be")), ("A_cF8_227_a", dict(C="Ge C Sn")), ("A_hR2_166_c", dict(As="As Sb Bi")), ("A_oC8_64_f", dict(P="P As")), ("A_hP3_152_a", dict(Se="Se Te")), ("A_hP4_194_bc", dict(C="C")), ("AB_hP4_194_c_d", dict(B="B", N="N")),
]
CORES = ["C{}", "CC{}", "CC(C){}", "C=C{}", "C#C{}", "C1CC1{}", "c1ccccc1{}", "c1ccoc1{}", "c1ccsc1{}", "c1ccncc1{}",
         "C1CCCC1{}", "C1CO1", "C1CS1", "C1CN1{}", "c1cnc[nH]1", "c1ncncc1{}", "C1=CCC=C1", "C1CCOC1", "CC=C{}", "CCC{}",
         "C1=CC=CC=C1{}", "O=C1CCC1", "N1C=CC=C1{}", "O=C{}", "OC(=O){}", "NC(=O){}", "FC(F){}", "ClC(Cl){}", "CS{}", "CO{}",
         "CN(C){}", "N#C{}", "O=S(=O)(C){}", "CC(=O){}", "OCC{}", "NCC{}", "SCC{}", "FCC{}", "ClCC{}"]
ENDS = ["[H]", "F", "Cl", "O", "N", "S", "C", "C#N", "C=O", "C(=O)O", "C(=O)N", "OC", "NC", "SC", "N(C)C", "C(F)(F)F",
        "[N+](=O)[O-]", "C=C", "C#C", "CC", "CO", "CF", "CCl", "CN", "CS", "C(C)=O", "OC=O", "NC=O", "N=C", "S(=O)(=O)C",
        "S(C)=O", "C=C=C", "OF", "NN", "OO", "SS", "NO", "C(Cl)Cl", "c1ccccc1", "c1ccco1", "C1CC1", "N=O"]


@lru_cache
def tested_crystals():
    "Gather the element sets that the benchmark's crystals have."
    made = [make() for make in (CRYSTALS | MORE_CRYSTALS).values()] + special_cells()
    return {frozenset(atoms.symbols) for atoms in made}


def tested_molecules():
    "Gather the formulas that the benchmark's molecules have."
    names = [*g2_names()[1::2], "CH3OH", "HCOOH", "CH3CHO", "CH3CN"]
    return {molecule(name).get_chemical_formula() for name in names} | {
        atoms.get_chemical_formula() for name in ("baker_shajan_2023", "birkholz_schlegel") for atoms in published(name)}


@lru_cache
def prototypes():
    "Read AFLOW's prototypes."
    from pymatgen.analysis.prototypes import AFLOW_PROTOTYPE_LIBRARY
    return [(entry["tags"]["aflow"], entry["snl"].structure) for entry in AFLOW_PROTOTYPE_LIBRARY]


def decorated(rng):
    "Choose a prototype and put other elements on its sites; the name, and the structure."
    label, pools = KINDS[rng.integers(len(KINDS))]
    found = [s for name, s in prototypes() if name == label and {str(e) for e in s.composition} == set(pools)]
    change = {old: rng.choice(pool.split()) for old, pool in pools.items()}
    structure = found[0]
    symbols = [change[str(site.specie)] for site in structure]
    cell = structure.lattice.matrix
    return label, Atoms(symbols, structure.frac_coords @ cell, cell=cell, pbc=True)


def crystal_of(k, calc):
    "Decorate a prototype, find its volume, strain it and displace its atoms; None where it is far from any minimum."
    rng = np.random.default_rng([71, k])
    if k % 10 == 9: return slab(rng, k)
    name, atoms = decorated(rng)
    if frozenset(atoms.symbols) in tested_crystals(): return None
    if len(set(atoms.symbols)) == 1 and rng.integers(3) > 1: return None  # a third of the elements alone is left out
    if len(atoms) <= 4: atoms = atoms.repeat([(2, 1, 1), (2, 2, 1), (2, 1, 2)][rng.integers(2 + (len(atoms) < 3))])
    atoms.set_cell(atoms.cell.array * touching(atoms), scale_atoms=True)
    atoms.calc = calc
    scales, energies, cell = np.linspace(0.82, 1.18, 7), [], atoms.cell.array.copy()
    for scale in scales:
        atoms.set_cell(scale * cell, scale_atoms=True)
        energies.append(atoms.get_potential_energy())
    lowest = int(np.argmin(energies))
    if lowest in (0, 6): return None
    a, b, _ = np.polyfit(scales[lowest - 1:lowest + 2], energies[lowest - 1:lowest + 2], 2)
    atoms.set_cell(-b / (2 * a) * cell, scale_atoms=True)
    if np.linalg.norm(atoms.get_forces(), axis=1).max() > 2.0: return None
    atoms.calc = None
    strained(atoms, rng.choice([0.0, 0.02, 0.04]), rng.choice([0.05, 0.1, 0.15]), rng, f"{k} {name}")
    return atoms


def touching(atoms):
    "Tell by how much a cell is to grow so that its closest pair is one covalent distance apart."
    i, j, d = neighbor_list("ijd", atoms, 8.0)
    radii = covalent_radii[atoms.numbers]
    return 1 / float((d / (radii[i] + radii[j])).min())


def slab(rng, k):
    "Put an atom or a small molecule on a slab of a metal."
    from ase.data import reference_states
    element = rng.choice("Al Ni Cu Rh Pd Ag Ir Pt Au".split())
    atoms = fcc111(element, (2, 2, 3), vacuum=6.0, a=reference_states[atomic_numbers[element]]["a"])
    atoms.pbc = True
    adsorbate = rng.choice(["H", "O", "N", "C", "S", "CO", "OH", "F", "Cl"])
    guest = molecule(adsorbate) if len(adsorbate) > 1 and adsorbate != "Cl" else Atoms(adsorbate)
    add_adsorbate(atoms, guest, rng.uniform(1.2, 2.0), rng.choice(["ontop", "bridge", "fcc", "hcp"]))
    atoms.positions += rng.normal(0, 0.08, atoms.positions.shape)
    atoms.info = dict(source=f"{k} slab {adsorbate} on {element}", cell=None)
    return atoms


def molecules():
    "List SMILES: g2's molecules of the development half come first."
    from rdkit import Chem
    found = {}
    for core, end in itertools.product(CORES, ENDS):
        mol = Chem.MolFromSmiles(core.format(end))
        if mol is not None: found.setdefault(Chem.MolToSmiles(mol), mol)
    return list(found)


def molecule_of(k, smiles):
    "Embed a molecule and displace its atoms."
    from rdkit import Chem
    from rdkit.Chem import AllChem
    rng = np.random.default_rng([72, k])
    names = g2_names()[::2]
    if k < len(names):
        name, atoms = names[k], molecule(names[k])
        atoms.set_initial_magnetic_moments(None)
    else:
        name = smiles[rng.permutation(len(smiles))[0]]
        mol = Chem.AddHs(Chem.MolFromSmiles(name))
        if AllChem.EmbedMolecule(mol, randomSeed=k) != 0: return None
        atoms = Atoms([a.GetSymbol() for a in mol.GetAtoms()], mol.GetConformer().GetPositions())
    if not 4 <= len(atoms) <= 20 or np.sum(atoms.numbers) % 2: return None
    atoms.positions += rng.normal(0, rng.choice([0.05, 0.1, 0.15]), atoms.positions.shape)
    atoms.info = dict(source=f"{k} {name}")
    return atoms


def frame(atoms, source, stage):
    "Take a picture with energy, forces, and stress where there is a cell."
    results = dict(energy=float(atoms.get_potential_energy()), forces=np.array(atoms.get_forces(apply_constraint=False)))
    if atoms.pbc.all(): results["stress"] = np.array(atoms.get_stress(apply_constraint=False))
    kept = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    kept.info = dict(source=source, stage=stage)
    kept.calc = SinglePointCalculator(kept, **results)
    return kept


def lesson(atoms, rng, steps=14):
    "Relax, look at some places around the end, and return all frames."
    source, free = atoms.info["source"], atoms.info.get("cell") is not None and rng.random() < 0.5
    frames = [frame(atoms, source, "relaxing")]
    if np.abs(frames[0].get_forces()).max() > HIGHEST: return []
    target = FrechetCellFilter(atoms) if free else atoms
    opt = RLOptimizer(target, policy="none", logfile=None)
    opt.attach(lambda: frames.append(frame(atoms, source, "relaxing")))
    if not np.isfinite(frames[0].get_potential_energy()): return []
    converged = opt.run(fmax=0.02, steps=steps)
    end = atoms.copy()
    end.calc = atoms.calc
    for amplitude in (0.05, 0.1):
        moved = end.copy()
        moved.positions += rng.normal(0, amplitude, moved.positions.shape)
        if free: moved.set_cell(moved.cell.array @ (np.eye(3) + rng.normal(0, amplitude / 6, (3, 3))), scale_atoms=True)
        moved.calc = end.calc
        frames.append(frame(moved, source, "around"))
    for one in frames: one.info["converged"] = bool(converged)
    return frames[1:]  # the first is noted twice


def main():
    warnings.filterwarnings("ignore")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["crystals", "molecules"])
    parser.add_argument("file")
    parser.add_argument("--calls", type=int, default=10000)
    args = parser.parse_args()
    calc = calculator("chgnet" if args.kind == "crystals" else "gfn2")
    done, calls = -1, 0
    if os.path.exists(args.file):
        for one in iread(args.file, ":"): done, calls = int(one.info["source"].split()[0]), calls + 1
    listed = molecules() if args.kind == "molecules" else []
    tested = tested_crystals() if args.kind == "crystals" else tested_molecules()
    began, k = time.time(), done
    while calls < args.calls:
        k += 1
        atoms = crystal_of(k, calc) if args.kind == "crystals" else molecule_of(k, listed)
        if atoms is None: continue
        name = frozenset(atoms.symbols) if args.kind == "crystals" else atoms.get_chemical_formula()
        if name in tested or closest_pair(atoms).distance < 0.5: continue
        atoms.calc = calc
        try: frames = lesson(atoms, np.random.default_rng([73, k]))
        except Exception as error:
            print(f"{atoms.info['source']}: {type(error).__name__}: {str(error)[:100]}", flush=True)
            continue
        if not frames: continue
        write(args.file, frames, append=True)
        calls += len(frames)
        if k % 20 == 0: print(f"{k}: {calls} frames, {time.time() - began:.0f} s", flush=True)


if __name__ == "__main__": sys.exit(main())
