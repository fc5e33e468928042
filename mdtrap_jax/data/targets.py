"""The papers' target domains by name: who builds them, and what their classes are called."""

from collections.abc import Mapping
from typing import NamedTuple

EUROSAT_CLASSES = {
  "AnnualCrop": "Annual Crop Land",
  "Forest": "Forest",
  "HerbaceousVegetation": "Herbaceous Vegetation Land",
  "Highway": "Highway or Road",
  "Industrial": "Industrial Buildings",
  "Pasture": "Pasture Land",
  "PermanentCrop": "Permanent Crop Land",
  "Residential": "Residential Buildings",
  "River": "River",
  "SeaLake": "Sea or Lake",
}

# The reference's prompts have the folder names of the Kaggle copy; TFDS has Mendeley's.
CROPDISEASE_CLASSES = {
  "Cherry___Powdery_mildew": "Cherry_(including_sour)___Powdery_mildew",
  "Cherry___healthy": "Cherry_(including_sour)___healthy",
  "Corn___Cercospora_leaf_spot Gray_leaf_spot": (
    "Corn_(maize)___Cercospora_leaf_spot Gray_leaf_spot"
  ),
  "Corn___Common_rust": "Corn_(maize)___Common_rust_",
  "Corn___Northern_Leaf_Blight": "Corn_(maize)___Northern_Leaf_Blight",
  "Corn___healthy": "Corn_(maize)___healthy",
}


class Target(NamedTuple):
  """A target domain: its TFDS builder, and its labels' names in prompts where they differ."""

  builder: str
  class_names: Mapping[str, str] | None = None


TARGETS = {
  "eurosat": Target("eurosat/rgb", EUROSAT_CLASSES),
  "cropdisease": Target("plant_village", CROPDISEASE_CLASSES),
  "isic": Target("isic2018"),
  "chestx": Target("chestx14"),
}
