"""Writers of what annotation tools read: predictions for a person to correct. `training.annotations` reads them."""
